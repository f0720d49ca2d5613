# Sourced: CORE, the tests of the core and of llava/ that every supported transformers must pass.
CORE=(tests/visiondrop/test_exactness.py tests/visiondrop/test_families.py tests/visiondrop/test_fidelity.py tests/visiondrop/test_limits.py
    tests/visiondrop/test_methods_traces.py tests/visiondrop/test_pruned_model.py tests/visiondrop/test_reentrant.py
    tests/llava/test_surface.py tests/llava/test_loading.py)
