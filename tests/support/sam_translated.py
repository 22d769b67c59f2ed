"""Translates templates with SAM's translator, as for CloudFormation; runs in the template environment."""

import json
import sys

from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

translated = []
for template in json.load(sys.stdin):
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://bucket/deployment.zip"  # as `sam deploy` does
    translated.append(Translator({}, Parser()).translate(template, {}))
json.dump(translated, sys.stdout)
