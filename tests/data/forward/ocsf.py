"""Reads OCSF events, one a line, and says as JSON what the published schema has against them.

The schema is the one of `metadata.version`, of the class of `class_uid` and with the profiles of
`metadata.profiles`; what a class does not know is told too.
"""

import json
import sys

from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

schemas = {}
validators = {}


def validator(event):
    metadata = event["metadata"]
    version, uid = metadata["version"], event["class_uid"]
    key = (version, uid, *metadata.get("profiles", []))
    if key not in validators:
        if version not in schemas:
            schemas[version] = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=version))
        schema = schemas[version]
        name = schema.lookup_class_name_from_uid(class_uid=uid)
        profiles = metadata.get("profiles", [])
        validators[key] = Draft202012Validator(schema.get_class_schema(class_name=name, profiles=profiles))
    return validators[key]


count, wrong = 0, {}
for line in sys.stdin:
    event = json.loads(line)
    count += 1
    for error in validator(event).iter_errors(event):
        what = f"{event['type_uid']} {error.json_path}: {error.message[:200]}"
        wrong.setdefault(what, event["metadata"]["uid"])
json.dump({"events": count, "wrong": wrong}, sys.stdout)
