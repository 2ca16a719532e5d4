"""Attacks ingest from one address with each hostile client, and prints its memory and the latency of other clients.

    python tests/chaos/flood.py [--seconds 5] [--connections 300] [--only NAME]

Exits with 1 if ingest takes more than 300 MB, or if another client gets no answer.
"""

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from http_attacks import BY_ANYONE, BY_SENDERS, attack, rss_mb, wait_until_served

from ingest.sources import add_source
from smspulse.processes.children import find_free_port

MOST_MB = 300


def main() -> None:
    """Run the attacks and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=300)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    failed = False
    runs = [(each.__name__, (each,), False) for each in BY_ANYONE]
    runs += [(f"{each.__name__}, with a token", (each,), True) for each in BY_SENDERS]
    runs += [("all of anyone", BY_ANYONE, False), ("all", BY_ANYONE + BY_SENDERS, True)]
    for name, attacks, has_token in runs:
        if options.only not in name:
            continue
        with TemporaryDirectory() as folder:
            data, port = Path(folder), find_free_port()
            paths = [f"/webhooks/{source}/{add_source(data, source)}".encode() for source in ("acme", "other")]
            log = (data / "log").open("wb")
            command = [sys.executable, "-m", "smspulse", "ingest", "--data", folder, "--broker", "127.0.0.1:1"]
            process = subprocess.Popen([*command, "--port", str(port)], stderr=log)
            try:
                wait_until_served(process, port)
                before = rss_mb(process.pid)
                body = b'{"sms_id": 1, "status_id": 7}'
                request = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                measured = asyncio.run(
                    attack(
                        process.pid,
                        port,
                        attacks,
                        options.seconds,
                        connections=options.connections,
                        secret=paths[0] if has_token else b"",
                        bystander=(request % (paths[1], len(body), body), b" 202 "),
                    )
                )
            finally:
                process.kill()
                process.wait()
            written = (data / "log").stat().st_size
            print(f"{name}: before {before:.0f} MB; {measured}; {written / 1000:.1f} kB of log", flush=True)
            for problem in sorted(set(measured.failures))[:3]:
                print(f"  {problem}")
            failed = failed or measured.rss_mb > MOST_MB or bool(measured.failures)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
