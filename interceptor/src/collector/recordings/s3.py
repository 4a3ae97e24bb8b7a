# S3 for tests: `moto`, which checks every signature from its fifth request on. Prints where it is and
# who may ask, and ends with its standard input. With the files of a certificate and its key it also
# speaks TLS.
import json, logging, os, sys, threading

os.environ.update(INITIAL_NO_AUTH_ACTION_COUNT="4", NO_PROXY="127.0.0.1", AWS_EC2_METADATA_DISABLED="true")
logging.disable(logging.INFO)
import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import ThreadedMotoServer
from moto.moto_server.threaded_moto_server import MotoRequestHandler
from werkzeug.serving import make_server

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
ask = dict(endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
           aws_access_key_id="first", aws_secret_access_key="first")
iam = boto3.client("iam", **ask)
iam.create_user(UserName="collector")
key = iam.create_access_key(UserName="collector")["AccessKey"]
allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
iam.put_user_policy(UserName="collector", PolicyName="all", PolicyDocument=json.dumps(allow))
boto3.client("s3", **ask).create_bucket(Bucket="records")
tls = 0
if len(sys.argv) == 3:
    app = DomainDispatcherApplication(create_backend_app)
    secure = make_server("127.0.0.1", 0, app, True, request_handler=MotoRequestHandler, ssl_context=tuple(sys.argv[1:]))
    tls = secure.server_address[1]
    threading.Thread(target=secure.serve_forever, daemon=True).start()
print(json.dumps({"port": port, "tls": tls, "id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}), flush=True)
sys.stdin.read()
