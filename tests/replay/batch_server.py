"""A server with the files and batches endpoints of the OpenAI API. A batch is worked on when it is looked at for the second time."""

import json
import re
from collections import Counter

from tests.replay.model_servers import ModelServer, Reply, usual


class BatchServer(ModelServer):
    """`verdict(request, number)` may give another line than an answer: `error` code, (status, body), or None for no line at all."""

    def __init__(self, answer=usual, verdict=None, refuse=""):
        super().__init__(answer)
        self.verdict, self.refuse = verdict or (lambda request, number: "answer"), refuse
        self.files, self.batches, self.looks = {}, {}, Counter()
        self.asked = Counter()

    async def _one(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1])) if length else b""
        method, path = head.split(b" ", 2)[:2]
        reply = self._routed(method.decode(), path.decode().partition("?")[0].removeprefix("/v1/").split("/"), body)
        writer.write(f"HTTP/1.1 {reply.status} X\r\nContent-Length: {len(reply.body)}\r\nContent-Type: application/json\r\n\r\n".encode())
        writer.write(reply.body)
        await writer.drain()
        return True

    def _routed(self, method, path, body):
        self.counts[f"{method} {path[0]}"] += 1
        if (method, path) == ("POST", ["files"]):
            content = re.search(rb'name="file".*?\r\n\r\n(.*?)\r\n--', body, re.DOTALL)[1]
            return self._made(self.files, "file", {"purpose": "batch"}, content)
        if (method, path) == ("POST", ["batches"]):
            return self._made(self.batches, "batch", {**json.loads(body), "status": "validating"})
        if (method, path) == ("GET", ["batches"]):
            return _json({"object": "list", "data": list(self.batches.values()), "has_more": False})
        if path[0] == "batches":
            return _json(self._looked(self.batches[path[1]]))
        return Reply(body=self.files[path[1]])

    def _made(self, where, kind, fields, content=None):
        name = f"{kind}-{len(where)}"
        fields = {"id": name, "object": kind, "created_at": 0, "bytes": 0, "filename": "x", "status": "processed", **fields}
        where[name] = fields if content is None else content
        return _json(fields)

    def _looked(self, batch):
        self.looks[batch["id"]] += 1
        if self.looks[batch["id"]] < 2 or batch["status"] in ("completed", "failed"):
            return batch
        if self.refuse:
            batch |= {"status": "failed", "errors": {"object": "list", "data": [{"code": "x", "message": self.refuse}]}}
            return batch
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        made = {"output": [], "error": []}
        for line in reversed(lines):
            self.asked[line["custom_id"]] += 1
            said = self.verdict(line["body"], self.asked[line["custom_id"]])
            if said == "answer":
                made["output"].append(self._line(line, 200, json.loads(self.answered(json.dumps(line["body"])).body)))
            elif isinstance(said, tuple):
                made["error"].append(self._line(line, *said))
            elif said is not None:
                made["error"].append(
                    {"id": "r", "custom_id": line["custom_id"], "response": None, "error": {"code": said, "message": said}}
                )
        for kind, rows in made.items():
            if rows:
                name = f"{kind}-{batch['id']}"
                self.files[name] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
                batch[f"{kind}_file_id"] = name
        batch["status"] = "completed"
        return batch

    def _line(self, line, status, body):
        response = {"status_code": status, "request_id": "r", "body": body}
        return {"id": "batch_req_1", "custom_id": line["custom_id"], "response": response, "error": None}


def _json(fields):
    return Reply(body=json.dumps(fields).encode())
