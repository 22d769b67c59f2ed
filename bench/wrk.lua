-- What wrk sends, from environment variables; what it measured, as one line of JSON.
local paths, number = {}, 0
for path in os.getenv("BENCH_PATHS"):gmatch("%S+") do paths[#paths + 1] = path end

wrk.method = os.getenv("BENCH_METHOD")
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")
if wrk.method == "POST" then
  wrk.body = os.getenv("BENCH_BODY")
  wrk.headers["Content-Type"] = "application/json"
end

request = function()
  number = number % #paths + 1
  return wrk.format(nil, paths[number])
end

done = function(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "p50_us": %d, "p99_us": %d, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), failed.status,
    failed.connect + failed.read + failed.write + failed.timeout
  ))
end
