"""Published checkpoint -> folders for ONNX Runtime."""
