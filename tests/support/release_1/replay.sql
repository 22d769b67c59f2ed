select set_tenant(%(tenant_id)s);
SELECT (SELECT idempotency_keys.fingerprint
FROM idempotency_keys
WHERE idempotency_keys.tenant_id = %(tenant_id)s AND idempotency_keys.created_by = %(created_by)s AND idempotency_keys.idempotency_key = %(idempotency_key)s) AS anon_1, answered.order_id, answered.version, CAST(row_to_json(answered) AS TEXT) AS row_to_json_1
FROM (SELECT orders.order_id AS order_id, orders.tenant_id AS tenant_id, orders.created_by AS created_by, orders.status AS status, orders.version AS version, orders.customer_name AS customer_name, orders.customer_email AS customer_email, orders.customer_phone AS customer_phone, orders.shipping_address AS shipping_address, orders.billing_address AS billing_address, orders.total_amount AS total_amount, orders.currency AS currency, array_to_json(array((SELECT row_to_json(item) AS row_to_json_2
FROM (SELECT order_items.line_no AS line_no, order_items.product_name AS product_name, order_items.product_sku AS product_sku, order_items.quantity AS quantity, order_items.unit_price AS unit_price
FROM order_items
WHERE order_items.tenant_id = %(tenant_id)s AND order_items.order_id = orders.order_id ORDER BY order_items.line_no) AS item))) AS items, to_char(timezone('UTC', orders.created_at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at, to_char(timezone('UTC', orders.updated_at), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS updated_at
FROM orders
WHERE orders.tenant_id = %(tenant_id)s AND orders.order_id = (SELECT idempotency_keys.order_id
FROM idempotency_keys
WHERE idempotency_keys.tenant_id = %(tenant_id)s AND idempotency_keys.created_by = %(created_by)s AND idempotency_keys.idempotency_key = %(idempotency_key)s)) AS answered ORDER BY answered.order_id DESC
