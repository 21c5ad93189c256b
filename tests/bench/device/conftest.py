from tests.vlm.intel import INTEL

# not skipped: tests/vlm/onnxruntime/test_providers.py says what happens on other machines
collect_ignore = [] if INTEL else ["test_accelerator.py"]
