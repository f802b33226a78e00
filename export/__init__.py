"""From a source model to a verified bundle. Needs PyTorch and onnx; nothing here is imported on a device."""
