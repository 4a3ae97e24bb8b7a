"""Terminals of every size: argv: sizes as COLSxROWS. Raw messages, for paramiko checks nothing."""
import json, os, sys, time
import paramiko

out = {"answers": {}}
for size in sys.argv[1].split():
    cols, rows = map(int, size.split("x"))
    c = paramiko.SSHClient()
    c.load_host_keys(os.path.expanduser("~/.ssh/known_hosts"))
    c.connect(os.environ["SSH_HOST"], username=os.environ["SSH_LOGIN"], timeout=15)
    try:
        ch = c.get_transport().open_session()
        ch.settimeout(15)
        ch.get_pty("xterm", cols, rows, 0, 0)
        ch.exec_command("stty size")
        for w, h in ((0, 0), (cols, rows), (4294967295, 1), (80, 24)):
            try:
                ch.resize_pty(w, h)
            except Exception:
                pass
        data = b""
        while True:
            d = ch.recv(4096)
            if not d:
                break
            data += d
        out["answers"][size] = data.decode().strip()
    except Exception as e:
        out["answers"][size] = "refused: %s" % e
    c.close()
print(json.dumps(out))
