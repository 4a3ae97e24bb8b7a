"""Tries one password and nothing else: argv: password, command."""
import json, os, sys
import paramiko

out = {}
c = paramiko.SSHClient()
c.load_host_keys(os.path.expanduser("~/.ssh/known_hosts"))
try:
    c.connect(os.environ["SSH_HOST"], username=os.environ["SSH_LOGIN"], password=sys.argv[1], timeout=15,
              auth_timeout=15, allow_agent=False, look_for_keys=False)
    _, o, _ = c.exec_command(sys.argv[2], timeout=20)
    out["out"] = o.read().decode()
except Exception as e:
    out["error"] = str(e)
print(json.dumps(out))
