"""`python -m deploy`: the commands behind make's build-, deploy- and gateway-responses targets."""

import argparse
from collections.abc import Callable
from pathlib import Path

from deploy import aws, aws_deployment, hosts

Command = Callable[[argparse.Namespace], None]

BUILDS: dict[str, Command] = {
    "aws": lambda chosen: aws.build(
        chosen.folder, chosen.stage, chosen.arch, snapstart=chosen.snapstart == "on"
    ),
    "azure": lambda chosen: hosts.build("azure", chosen.folder),
    "gcp": lambda chosen: hosts.build("gcp", chosen.folder),
    "oci": lambda chosen: hosts.build("oci", chosen.folder),
}
DEPLOYMENTS: dict[str, Command] = {
    "aws": lambda chosen: aws_deployment.deploy(chosen.folder, chosen.stage, chosen.via),
    "azure": lambda chosen: hosts.deploy("azure", chosen.folder),
    "gcp": lambda chosen: hosts.deploy("gcp", chosen.folder),
    "run": lambda chosen: hosts.deploy("run", chosen.folder),
    "oci": lambda chosen: hosts.deploy("oci", chosen.folder),
}
GATEWAY_RESPONSES: dict[str, Command] = {
    "aws": lambda chosen: aws_deployment.put_gateway_responses(chosen.folder, chosen.stage),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy")
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="write build/<cloud>, ready for that cloud's own command")
    build.add_argument("cloud", choices=BUILDS)
    build.add_argument("--into", dest="folder", type=Path, help="the folder; default build/<cloud>")
    build.add_argument("--stage", default="dev")
    build.add_argument("--arch", choices=aws.ARCHITECTURES, default="arm64", help="of the Lambda function")
    build.add_argument("--snapstart", choices=("on", "off"), default="off", help="AWS: start from snapshots")
    build.set_defaults(commands=BUILDS)

    deploy = commands.add_parser("deploy", help="call that cloud's own command on the built folder")
    deploy.add_argument("cloud", choices=DEPLOYMENTS)
    deploy.add_argument("--from", dest="folder", type=Path, help="the folder; default build/<cloud>")
    deploy.add_argument("--stage", default="dev")
    deploy.add_argument(
        "--via", choices=aws_deployment.TOOLS, default="chalice", help="AWS: the command that deploys"
    )
    deploy.set_defaults(commands=DEPLOYMENTS)

    responses = commands.add_parser("gateway-responses", help="API Gateway's own errors, as problem+json")
    responses.add_argument("--from", dest="folder", type=Path, help="the folder; default build/aws")
    responses.add_argument("--stage", default="dev")
    responses.set_defaults(cloud="aws", commands=GATEWAY_RESPONSES)

    chosen = parser.parse_args()
    chosen.folder = chosen.folder or Path("build") / {"run": "gcp"}.get(chosen.cloud, chosen.cloud)
    chosen.commands[chosen.cloud](chosen)


if __name__ == "__main__":
    main()
