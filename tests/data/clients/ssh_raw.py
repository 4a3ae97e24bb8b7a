"""Messages that no honest client sends, each on a connection of its own: prints what became of
it. argv: `before` or `after` authentication, or `auth` or `channels` for floods of them."""
import json, os, socket, struct, sys, time
import paramiko
from paramiko.message import Message

host, login = os.environ["SSH_HOST"], os.environ["SSH_LOGIN"]


def u32(n):
    return struct.pack(">I", n)


def s(text):
    text = text if isinstance(text, bytes) else text.encode()
    return u32(len(text)) + text


def connect(auth):
    sock = socket.create_connection((host, 22), timeout=15)
    t = paramiko.Transport(sock)
    t.start_client(timeout=15)
    if auth:
        path = os.path.expanduser("~/.ssh/id_ecdsa")
        key = paramiko.ECDSAKey.from_private_key_file(path)
        key.load_certificate(path + "-cert.pub")
        t.auth_publickey(login, key)
    return t


def send(t, *payloads):
    for payload in payloads:
        m = Message()
        m.add_bytes(payload)
        t._send_message(m)


def outcome(t, after):
    """Whether the connection ended by itself, or still answers."""
    if not after:
        # There is nothing that could be asked before authentication.
        end = time.time() + 0.5
        while t.is_active() and time.time() < end:
            time.sleep(0.02)
        return "goes on" if t.is_active() else "ended"
    end = time.time() + 8
    while time.time() < end:
        if not t.is_active():
            return "ended"
        try:
            # A request that nobody knows is answered with a failure.
            t.global_request("still-there@example.com", wait=True)
            return "ended" if not t.is_active() else "goes on"
        except Exception:
            time.sleep(0.05)
    return "hangs"


HUGE = u32(0x7FFFFFFF)
BEFORE = {
    "no message at all": [b""],
    "an unknown message": [b"\xff"],
    "a reserved message": [b"\xc0" + b"x" * 100],
    "a cut SERVICE_REQUEST": [b"\x05" + HUGE],
    "an unknown service": [b"\x05" + s("ssh-nothing")],
    "the connection service": [b"\x05" + s("ssh-connection")],
    "USERAUTH_REQUEST without a service": [b"\x32" + s("x") + s("ssh-connection") + s("none")],
    "a cut USERAUTH_REQUEST": [b"\x05" + s("ssh-userauth"), b"\x32" + s("x") + HUGE],
    "a user of a megabyte": [b"\x05" + s("ssh-userauth"), b"\x32" + s("x" * 200000) + s("ssh-connection") + s("none")],
    "a user that is no text": [b"\x05" + s("ssh-userauth"), b"\x32" + s(b"\xff\xfe\0") + s("ssh-connection") + s("none")],
    "a password of 200 KB": [b"\x05" + s("ssh-userauth"),
                             b"\x32" + s("x") + s("ssh-connection") + s("password") + b"\0" + s("x" * 200000)],
    "a new password": [b"\x05" + s("ssh-userauth"),
                       b"\x32" + s("x") + s("ssh-connection") + s("password") + b"\1" + s("x") + s("y")],
    "a public key that is none": [b"\x05" + s("ssh-userauth"),
                                  b"\x32" + s("x") + s("ssh-connection") + s("publickey") + b"\1" + s("ssh-ed25519") + s("x") + s("y")],
    "a certificate that is none": [b"\x05" + s("ssh-userauth"),
                                   b"\x32" + s("x") + s("ssh-connection") + s("publickey") + b"\1"
                                   + s("ecdsa-sha2-nistp256-cert-v01@openssh.com") + s(b"\0" * 500) + s("y")],
    "an unknown method": [b"\x05" + s("ssh-userauth"), b"\x32" + s("x") + s("ssh-connection") + s("telepathy")],
    "answers that nobody asked for": [b"\x05" + s("ssh-userauth"), b"\x3d" + u32(1) + s("x")],
    "a billion answers": [b"\x05" + s("ssh-userauth"),
                          b"\x32" + s("x") + s("ssh-connection") + s("keyboard-interactive") + s("") + s(""),
                          b"\x3d" + HUGE],
    "a channel before authentication": [b"\x5a" + s("session") + u32(0) + u32(1 << 20) + u32(1 << 15)],
    "a global request before authentication": [b"\x50" + s("tcpip-forward") + b"\1" + s("") + u32(0)],
    "a KEXINIT that is cut": [b"\x14" + b"x" * 5],
    "NEWKEYS out of place": [b"\x15"],
    "a KEX reply out of place": [b"\x1f" + s("x") + s("y") + s("z")],
    "ten thousand IGNOREs": [b"\x02" + s("x" * 100)] * 10000,
    "DEBUG that is cut": [b"\x04"],
}
OPEN = b"\x5a" + s("session") + u32(0) + u32(1 << 20) + u32(1 << 15)
REQUEST = lambda name, rest=b"", to=0: b"\x62" + u32(to) + s(name) + b"\1" + rest
AFTER = {
    "an unknown message": [b"\xff"],
    "authentication again": [b"\x05" + s("ssh-userauth"), b"\x32" + s("x") + s("ssh-connection") + s("none")],
    "a channel of an unknown type": [b"\x5a" + s("tunnel@example.com") + u32(0) + u32(1) + u32(1)],
    "a channel that is cut": [b"\x5a" + HUGE],
    "a channel without window": [b"\x5a" + s("session") + u32(0) + u32(0) + u32(0), REQUEST("exec", s("echo x"))],
    "a tunnel device": [b"\x5a" + s("tun@openssh.com") + u32(0) + u32(1 << 20) + u32(1 << 15) + u32(1) + u32(0)],
    "an X11 channel of the client": [b"\x5a" + s("x11") + u32(0) + u32(1) + u32(1) + s("x") + u32(1)],
    "forwarded-tcpip from the client": [b"\x5a" + s("forwarded-tcpip") + u32(0) + u32(1) + u32(1) + s("x") + u32(1) + s("y") + u32(2)],
    "direct-tcpip with a port beyond ports": [b"\x5a" + s("direct-tcpip") + u32(0) + u32(1) + u32(1) + s("127.0.0.1") + u32(65558) + s("y") + u32(2)],
    "direct-tcpip to no text": [b"\x5a" + s("direct-tcpip") + u32(0) + u32(1) + u32(1) + s(b"\xff\0") + u32(22) + s("y") + u32(2)],
    "data for a channel that is not there": [b"\x5e" + u32(77) + s("x")],
    "data of no channel": [b"\x5e"],
    "extended data of an unknown kind": [OPEN, b"\x5f" + u32(0) + u32(9) + s("x")],
    "a window that overflows": [OPEN, b"\x5d" + u32(0) + u32(0xFFFFFFFF), b"\x5d" + u32(0) + u32(0xFFFFFFFF)],
    "more than the window": [OPEN, REQUEST("exec", s("sleep 5"))] + [b"\x5e" + u32(0) + s(b"x" * 32768)] * 400,
    "a packet beyond the largest": [OPEN, REQUEST("exec", s("sleep 5")), b"\x5e" + u32(0) + s(b"x" * 250000)],
    "close twice": [OPEN, b"\x61" + u32(0), b"\x61" + u32(0)],
    "data after the end": [OPEN, REQUEST("exec", s("cat")), b"\x60" + u32(0), b"\x5e" + u32(0) + s("x")],
    "a confirmation that nobody waits for": [b"\x5b" + u32(5) + u32(5) + u32(1) + u32(1)],
    "success that nobody waits for": [b"\x63" + u32(0)],
    "exec twice": [OPEN, REQUEST("exec", s("echo x")), REQUEST("exec", s("echo y"))],
    "exec and a shell": [OPEN, REQUEST("exec", s("echo x")), REQUEST("shell")],
    "exec that is cut": [OPEN, REQUEST("exec", HUGE)],
    "exec that is no text": [OPEN, REQUEST("exec", s(b"echo \xff\xfe"))],
    "exec with a zero in it": [OPEN, REQUEST("exec", s(b"echo x\0rm y"))],
    "an empty exec": [OPEN, REQUEST("exec", s(""))],
    "a pty that is cut": [OPEN, REQUEST("pty-req", s("xterm"))],
    "a pty whose modes are cut": [OPEN, REQUEST("pty-req", s("xterm") + u32(80) + u32(24) + u32(0) + u32(0) + s(b"\x01\0\0"))],
    "a pty with a thousand modes": [OPEN, REQUEST("pty-req", s("xterm") + u32(80) + u32(24) + u32(0) + u32(0) + s(b"\x35\0\0\0\1" * 1000 + b"\0"))],
    "a pty of no text": [OPEN, REQUEST("pty-req", s(b"\xff\xfe") + u32(80) + u32(24) + u32(0) + u32(0) + s(b"\0"))],
    "two ptys": [OPEN] + [REQUEST("pty-req", s("xterm") + u32(80) + u32(24) + u32(0) + u32(0) + s(b"\0"))] * 2,
    "env that is cut": [OPEN, REQUEST("env", s("LC_X"))],
    "env that is no text": [OPEN, REQUEST("env", s(b"LC_\xff") + s(b"\xff\0"))],
    "a thousand envs": [OPEN] + [REQUEST("env", s("LC_%d" % n) + s("x")) for n in range(1000)],
    "an unknown subsystem": [OPEN, REQUEST("subsystem", s("netconf"))],
    "a subsystem of a megabyte": [OPEN, REQUEST("subsystem", s("x" * 200000))],
    "a signal that is none": [OPEN, REQUEST("signal", s("NOTHING\0"))],
    "a window change that is cut": [OPEN, REQUEST("window-change", u32(1))],
    "an unknown request": [OPEN, REQUEST("levitate@example.com", s("x"))],
    "a request for a channel that is not there": [REQUEST("exec", s("echo x"), 9)],
    "exit-status from the client": [OPEN, REQUEST("exit-status", u32(0))],
    "sftp packets of no length": [OPEN, REQUEST("subsystem", s("sftp")), b"\x5e" + u32(0) + s(u32(0))],
    "sftp packets of two gigabytes": [OPEN, REQUEST("subsystem", s("sftp")), b"\x5e" + u32(0) + s(HUGE + b"\1")],
    "sftp without a greeting": [OPEN, REQUEST("subsystem", s("sftp")), b"\x5e" + u32(0) + s(u32(9) + b"\3" + u32(1) + s(""))],
    "sftp packets that are cut": [OPEN, REQUEST("subsystem", s("sftp")), b"\x5e" + u32(0) + s(u32(5) + b"\1" + u32(3)),
                                  b"\x5e" + u32(0) + s(u32(9) + b"\3" + u32(1) + HUGE)],
    "sftp of an unknown type": [OPEN, REQUEST("subsystem", s("sftp")), b"\x5e" + u32(0) + s(u32(5) + b"\1" + u32(3)),
                                b"\x5e" + u32(0) + s(u32(5) + b"\x99" + u32(1))],
    "a tcpip-forward that is cut": [b"\x50" + s("tcpip-forward") + b"\1" + HUGE],
    "a thousand global requests": [b"\x50" + s("x@example.com") + b"\1"] * 1000,
    "a DISCONNECT that is cut": [b"\x01"],
}

out = {}
what = sys.argv[1]
if what in ("before", "after"):
    for name, payloads in (BEFORE if what == "before" else AFTER).items():
        begun = time.time()
        try:
            t = connect(what == "after")
        except Exception as e:
            out[name] = "cannot connect: %r" % e
            continue
        try:
            send(t, *payloads)
            out[name] = outcome(t, what == "after")
        except Exception as e:
            out[name] = "ended"
        t.close()
        if time.time() - begun > 12:
            out[name] = "hangs"
    # Bytes that are no packets at all, on an established connection.
    for name, junk in (("junk", b"x" * 1000), ("zeros", b"\0" * 100000)):
        t = connect(what == "after")
        try:
            t.packetizer._Packetizer__socket.sendall(junk)
        except Exception:
            pass
        end = time.time() + 20
        while t.is_active() and time.time() < end:
            time.sleep(0.05)
        out[name] = "hangs" if t.is_active() else "ended"
        t.close()
elif what == "auth":
    t = connect(False)
    tries = 0
    try:
        for n in range(100):
            try:
                t.auth_password(login, "not a token %d" % n, fallback=False)
            except paramiko.AuthenticationException:
                tries += 1
                if not t.is_active():
                    break
    except Exception:
        pass
    out["tries"] = tries
    out["active"] = t.is_active()
    t.close()
elif what == "channels":
    t = connect(True)
    opened, refused = [], 0
    for n in range(1000):
        try:
            opened.append(t.open_session(timeout=10))
        except paramiko.ChannelException:
            refused += 1
        except Exception as e:
            out["end"] = repr(e)
            break
    out["opened"], out["refused"] = len(opened), refused
    # What was opened is good for something.
    if opened:
        opened[0].exec_command("echo first")
        out["first"] = opened[0].makefile().read().decode()
    t.close()
print(json.dumps(out))
