"""An exported GGUF pair as a VLM, through the llama.cpp library or its server."""
