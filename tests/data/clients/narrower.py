"""A terminal that is made narrower while a command runs.

argv: the new width, a text to wait for, and the client's command line. Prints what was shown."""
import fcntl, os, pty, struct, sys, termios

columns, mark, client = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3:]


def width(columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


child, terminal = pty.fork()
if child == 0:
    os.execvp(client[0], client)
width(80)
shown, told = b"", False
while True:
    try:
        some = os.read(terminal, 65536)
    except OSError:  # EIO: the client has gone
        break
    if not some:
        break
    shown += some
    if mark in shown and not told:
        width(columns)
        told = True
os.waitpid(child, 0)
os.write(1, shown)
