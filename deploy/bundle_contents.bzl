"""What the bundle carries besides the programs."""

# The cases of a test that need a GPU, by their names.
_GPU_CASES = "*Cuda*:*Nccl*:*GpuTest.*-*Absent*"

# Tests with such cases.
GPU_TESTS = {label: _GPU_CASES for label in [
    "//kernels:attention_test",
    "//kernels:device_graph_test",
    "//kernels:device_memory_test",
    "//kernels:elementwise_test",
    "//kernels:embedding_test",
    "//kernels:loss_test",
    "//kernels:norm_test",
    "//kernels:ops_linear_test",
    "//kernels:optimizer_test",
    "//kernels:rotary_test",
    "//kernels:wire_test",
    "//kernels/cuda:device_test",
    "//kernels/cuda:linear_test",
    "//kernels/cuda:mma_test",
    "//kernels/cuda:quant4_test",
    "//kernels/cuda:skinny_test",
    "//worker:compute_device_test",
    "//worker/backbone:device_weights_test",
    "//worker/backbone:stage_test",
    "//worker/infer:infer_test",
    "//worker/side:arena_test",
    "//worker/side:graph_cache_test",
    "//worker/side:graph_training_test",
    "//worker/side:parameters_test",
    "//worker/side:side_network_test",
    "//worker/stream:buffer_test",
    "//worker/stream:device_timer_test",
    "//worker/stream:inproc_transport_test",
    "//worker/stream:nccl_transport_test",
    "//worker/stream:replay_stream_test",
    "//worker/stream:stage_runner_test",
    "//worker/train:optimizer_test",
    "//worker/train:trainer_test",
]}

# Benchmarks of the GPU backend. Each prints JSON lines {"name", "shape", "value", "unit", "ratio"}.
GPU_BENCHMARKS = [
    "//tests/bench:cuda_attention_bench",
    "//tests/bench:cuda_linear_bench",
    "//tests/bench:cuda_model_bench",
    "//tests/bench:cuda_ops_bench",
]

# Shell tests that start a whole cluster; on the device that QST_TEST_DEVICE names.
E2E_TESTS = [
    "//tests/e2e:main_job_test",
    "//tests/e2e:devices_test",
    "//tests/e2e:opt_test",
    "//tests/e2e:stories_test",
    "//tests/e2e:faults_test",
]
