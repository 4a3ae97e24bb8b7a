"""What paramiko does with a host: prints one JSON object. argv: the password, or nothing."""
import json, os, sys
import paramiko

password = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else None
out = {}
c = paramiko.SSHClient()
c.load_host_keys(os.path.expanduser("~/.ssh/known_hosts"))
c.set_missing_host_key_policy(paramiko.RejectPolicy())
c.connect(os.environ["SSH_HOST"], username=os.environ["SSH_LOGIN"], password=password, timeout=15, auth_timeout=15)


def run(command, stdin=None):
    i, o, e = c.exec_command(command, timeout=20)
    if stdin is not None:
        i.write(stdin)
    i.channel.shutdown_write()
    return o.read().decode(), e.read().decode(), o.channel.recv_exit_status()


out["out"], out["err"], out["code"] = run("echo out; echo err >&2; exit 3")
out["stdin"] = run("cat", "12345")[0]
_, out["denied"], out["denied_code"] = run("rm readme")
out["card"] = run("cat card")[0]
s = c.open_sftp()
with s.open("readme") as f:
    out["readme"] = f.read().decode()
with s.open("inbox/by-driver", "w") as f:
    f.write("by driver\n")
try:
    s.open(".bashrc", "w")
    out["sftp_denied"] = False
except (PermissionError, OSError):
    out["sftp_denied"] = True
s.close()
out["next"] = run("echo next")[0]
c.close()
print(json.dumps(out))
