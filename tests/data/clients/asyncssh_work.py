"""What asyncssh does with a host: prints one JSON object. argv: the password, or nothing."""
import asyncio, json, os, sys
import asyncssh

password = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else None


async def main():
    out = {}
    options = dict(username=os.environ["SSH_LOGIN"], login_timeout=15)
    if password:
        options["password"] = password
    async with asyncssh.connect(os.environ["SSH_HOST"], **options) as c:
        r = await c.run("echo out; echo err >&2; exit 3", timeout=20)
        out["out"], out["err"], out["code"] = r.stdout, r.stderr, r.exit_status
        out["stdin"] = (await c.run("cat", input="12345", timeout=20)).stdout
        r = await c.run("rm readme", timeout=20)
        out["denied"], out["denied_code"] = r.stderr, r.exit_status
        out["card"] = (await c.run("cat card", timeout=20)).stdout
        p = await c.create_process("sleep 50")
        await asyncio.sleep(0.5)
        p.send_signal("TERM")
        r = await asyncio.wait_for(p.wait(), 15)
        out["signal"] = r.exit_signal[0] if r.exit_signal else "none"
        async with c.start_sftp_client() as s:
            async with s.open("readme") as f:
                out["readme"] = await f.read()
            async with s.open("inbox/by-driver", "w") as f:
                await f.write("by driver\n")
            try:
                await s.open(".bashrc", "w")
                out["sftp_denied"] = False
            except asyncssh.SFTPError:
                out["sftp_denied"] = True
        out["next"] = (await c.run("echo next", timeout=20)).stdout
    print(json.dumps(out))


asyncio.run(main())
