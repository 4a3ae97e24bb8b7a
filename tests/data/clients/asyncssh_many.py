"""Many commands at once over one connection: argv: how many."""
import asyncio, json, os, sys
import asyncssh


async def main():
    count = int(sys.argv[1])
    async with asyncssh.connect(os.environ["SSH_HOST"], username=os.environ["SSH_LOGIN"]) as c:
        gate = asyncio.Semaphore(32)

        async def one(n):
            async with gate:
                r = await c.run("seq 1 200; echo last %d; exit %d" % (n, n % 7), timeout=60)
                return r.exit_status == n % 7 and r.stdout.endswith("200\nlast %d\n" % n)

        right = await asyncio.gather(*(one(n) for n in range(count)))
    print(json.dumps({"right": sum(right)}))


asyncio.run(main())
