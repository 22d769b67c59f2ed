"""`python -m deploy`: the commands behind make's build-, deploy- and gateway-responses targets.

Each imports its cloud's modules when it runs: all of them take half a second.
"""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy")
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="write build/<cloud>, ready for that cloud's own command")
    build.add_argument("cloud", choices=("aws", "azure", "gcp", "oci"))
    build.add_argument("--into", dest="folder", type=Path, help="the folder; default build/<cloud>")
    build.add_argument("--stage", default="dev")
    build.add_argument("--arch", choices=("arm64", "x86_64"), default="arm64", help="of the Lambda function")
    build.add_argument("--snapstart", choices=("on", "off"), default="off", help="AWS: start from snapshots")
    build.set_defaults(run=_build)

    deploy = commands.add_parser("deploy", help="call that cloud's own command on the built folder")
    deploy.add_argument("cloud", choices=("aws", "azure", "gcp", "run", "oci"), help="run: Cloud Run")
    deploy.add_argument("--from", dest="folder", type=Path, help="the folder; default build/<cloud>")
    deploy.add_argument("--stage", default="dev")
    deploy.add_argument(
        "--via", choices=("chalice", "sam"), default="chalice", help="AWS: the command that deploys"
    )
    deploy.set_defaults(run=_deploy)

    responses = commands.add_parser("gateway-responses", help="API Gateway's own errors, as problem+json")
    responses.add_argument("--from", dest="folder", type=Path, help="the folder; default build/aws")
    responses.add_argument("--stage", default="dev")
    responses.set_defaults(run=_put_gateway_responses, cloud="aws")

    chosen = parser.parse_args()
    chosen.folder = chosen.folder or Path("build") / {"run": "gcp"}.get(chosen.cloud, chosen.cloud)
    chosen.run(chosen)


def _build(chosen: argparse.Namespace) -> None:
    if chosen.cloud == "aws":
        from deploy import aws

        aws.build(chosen.folder, chosen.stage, chosen.arch, snapstart=chosen.snapstart == "on")
    else:
        from deploy import hosts

        hosts.build(chosen.cloud, chosen.folder)


def _deploy(chosen: argparse.Namespace) -> None:
    if chosen.cloud == "aws":
        from deploy import aws_deployment

        aws_deployment.deploy(chosen.folder, chosen.stage, chosen.via)
    else:
        from deploy import hosts

        hosts.deploy(chosen.cloud, chosen.folder)


def _put_gateway_responses(chosen: argparse.Namespace) -> None:
    from deploy import aws_deployment

    aws_deployment.put_gateway_responses(chosen.folder, chosen.stage)


if __name__ == "__main__":
    main()
