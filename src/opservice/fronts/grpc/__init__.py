"""gRPC, by grpc.aio."""
