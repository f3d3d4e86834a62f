"""REST and JSON, server-sent events and probes, as an ASGI application that uvicorn serves."""
