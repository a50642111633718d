"""InferX: a serverless GPU inference platform."""
