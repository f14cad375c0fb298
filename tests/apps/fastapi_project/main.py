"""The web server: starts tasks, answers their state, and tells it over a web socket."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import redis.asyncio
from fastapi import FastAPI, WebSocket

from fastapi_project.celery_utils import create_celery, get_task_info
from fastapi_project.tasks import CHANNEL

app = FastAPI()
celery_app: Any = create_celery()


@app.post("/call/{name}")
def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    names = {
        "add": "fastapi_project.tasks.add",
        "welcome": "mail:send.welcome",
        "resize": "image:resize",
        "broken": "fastapi_project.tasks.broken",
    }
    task = celery_app.tasks[names[name]]
    return {"id": task.apply_async(kwargs=arguments).id}


@app.get("/state/{task_id}")
def state(task_id: str) -> dict[str, Any]:
    return get_task_info(task_id)


@app.websocket("/ws/{task_id}")
async def status(websocket: WebSocket, task_id: str) -> None:
    """Once the task has run, what its handler saw, and what is read here at that moment."""
    await websocket.accept()
    client = redis.asyncio.Redis.from_url(os.environ["SHOP_REDIS"])
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(f"{CHANNEL}:{task_id}")
        await websocket.send_json({"listening": True})
        async for message in pubsub.listen():
            if message["type"] == "message":
                told = json.loads(message["data"])
                here = await asyncio.to_thread(get_task_info, task_id)
                await websocket.send_json({"handler": told["seen"], "here": here})
                break
    await client.aclose()
    await websocket.close()
