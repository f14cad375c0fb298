"""One process of a crowd of producers: so many threads enqueue one request with one key, at once.

    python -m tests.acceptance.crowd KEY THREADS

It says `ready`, waits for a line on stdin, and prints each answer: the job's id, and whether this
call has made it.
"""

from __future__ import annotations

import sys
import threading

from worker.client import Client


def main(key: str, threads: int) -> None:
    with Client() as client:
        client.catalogue()
        start = threading.Event()
        answers: list[str] = []

        def produce() -> None:
            start.wait()
            answer = client.enqueue("test.add", [1, 2], key=key)
            answers.append(f"{answer.id} {answer.created}")

        crowd = [threading.Thread(target=produce) for _ in range(threads)]
        for thread in crowd:
            thread.start()
        print("ready", flush=True)
        sys.stdin.readline()
        start.set()
        for thread in crowd:
            thread.join()
        print("\n".join(answers))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
