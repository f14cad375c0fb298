from asgiref.sync import sync_to_async
from celery.result import AsyncResult
from channels.generic.websocket import AsyncJsonWebsocketConsumer


class JobConsumer(AsyncJsonWebsocketConsumer):
    """Tells a browser that its job has ended, and what is read at that moment."""

    async def connect(self):
        self.job_id = self.scope["url_route"]["kwargs"]["job_id"]
        await self.channel_layer.group_add(f"job-{self.job_id}", self.channel_name)
        await self.accept()
        await self.send_json({"listening": True})

    async def job_ended(self, message):
        here = await sync_to_async(lambda: AsyncResult(self.job_id).state)()
        await self.send_json({"what": message["what"], "told": message["state"], "here": here})
