# Each target installs what it needs into .venv. Required: Python 3.10 to 3.13 and a C++ compiler.
#   make demo                  train and evaluate a detector on handwritten digits
#   make demo-classification   the same for a classifier
#   make demo-segmentation     the same for instance segmentation
#   make demo-retinanet        the same for the detector of the paper
#   make test                  the fast tests
#   make test-all              all tests
#   make gpu-check             on a machine with a GPU: its tests and benchmarks/gpu_*.csv
#   make test-openmmlab        the fast tests and two demos with the original OpenMMLab packages
#   make test-readme           the commands in README.md, with a small data set
#   make lint                  ruff and pyright
#   make format                fix style and formatting with ruff
#   make docs                  the documentation, in build/site
# VENV=path shares an environment between checkouts. PYTHON=path selects the interpreter.

PYTHON ?= python3
# tools/dist_train.sh would use it.
unexport PYTHON
VENV ?= .venv
WORK_DIR ?= work_dirs/$@
BIN := $(VENV)/bin
# With a shared environment, run the code of this checkout.
export PYTHONPATH := $(CURDIR)
# The maintained OpenMMLab packages; requirements/openmmlab has the original ones.
OPENMMLAB ?= requirements
REQUIREMENTS := $(sort $(wildcard requirements/*.txt $(OPENMMLAB)/*.txt))
# Named after a checksum of the requirements: installation runs only when they change.
INSTALLED := $(VENV)/installed-$(shell cat $(REQUIREMENTS) setup.py pyproject.toml | cksum | cut -d ' ' -f 1)
EXTRAS := analysis coreml digits docs hub onnx openmmlab openvino runtime tests timm
ifeq ($(OPENMMLAB),requirements)
# need a newer PyTorch
EXTRAS += executorch litert ncnn
endif
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c $(OPENMMLAB)/constraints.txt

.PHONY: env demo demo-classification demo-segmentation demo-retinanet test test-all gpu-check \
	test-readme test-openmmlab lint format docs clean

env: $(INSTALLED) mmevit/.mim/configs

# A shared environment may have been installed from another checkout.
mmevit/.mim/configs: | $(INSTALLED)
	$(BIN)/python setup.py --quiet --version

$(INSTALLED):
	@command -v $(PYTHON) >/dev/null || \
		{ echo "error: $(PYTHON) is not installed. Install Python 3.10 to 3.13 or pass PYTHON=path."; exit 1; }
	@$(PYTHON) tools/dev/check_machine.py $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision numpy -r requirements/build.txt
	@echo "Compiling mmcv's operators, unless pip has cached them: 2 to 7 minutes on two cores."
	export CFLAGS=-g0; \
		CFLAGS="$$CFLAGS $$($(BIN)/python -c 'import mmcv' >/dev/null 2>&1 || \
			$(BIN)/python tools/dev/precompile_headers.py $(VENV)/headers)" \
		$(PIP) --no-build-isolation -r $(OPENMMLAB)/mminstall.txt
	@rm -rf $(VENV)/headers
	$(PIP) --no-build-isolation -r requirements/base.txt -r $(OPENMMLAB)/optional.txt \
		$(EXTRAS:%=-r requirements/%.txt)
	@# mmcv requires opencv-python, others require opencv-python-headless: two builds of the same
	@# files. The headless build also works without display libraries.
	$(BIN)/python -m pip uninstall --yes opencv-python opencv-python-headless
	$(PIP) --no-deps opencv-python-headless
	$(PIP) --no-deps -e .
	@touch $@

data/digits: | env
	$(BIN)/python tools/prepare_digits.py $@

demo: DEMO_CONFIG := configs/rtmdet_evit_m0_digits.py
demo-retinanet: DEMO_CONFIG := configs/retinanet_evit_m4_digits.py
demo-segmentation: DEMO_CONFIG := configs/mask-rcnn_evit_m4_digits.py
demo demo-retinanet demo-segmentation: env | data/digits
	$(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(WORK_DIR)
	$(BIN)/python tools/test.py $(DEMO_CONFIG) $$(cat $(WORK_DIR)/last_checkpoint) --work-dir $(WORK_DIR) \
		--show-dir $(WORK_DIR)/val_images --interval 10
	@echo "Checkpoint:                   $$(cat $(WORK_DIR)/last_checkpoint)"
	@echo "Loss and mAP:                 $(WORK_DIR)/curves.png"
	@echo "Ground truth and predictions: $(WORK_DIR)/val_images/, sixteen validation images"
	@echo "Logs:                         $(WORK_DIR)/, one folder per run"

demo-classification: DEMO_CONFIG := configs/evit_m0_digits.py
demo-classification: env | data/digits
	$(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(WORK_DIR)
	$(BIN)/python tools/test.py $(DEMO_CONFIG) $$(cat $(WORK_DIR)/last_checkpoint) \
		--work-dir $(WORK_DIR) --out $(WORK_DIR)/predictions.pkl
	$(BIN)/python $$($(BIN)/python -c 'import mmpretrain; print(mmpretrain.__path__[0])' | tail -n 1)/.mim/tools/analysis_tools/confusion_matrix.py \
		$(DEMO_CONFIG) $(WORK_DIR)/predictions.pkl --include-values \
		--show-path $(WORK_DIR)/confusion_matrix.png
	$(BIN)/python tools/analysis/grad_cam.py $(DEMO_CONFIG) \
		$$(cat $(WORK_DIR)/last_checkpoint) \
		$$(ls data/digits/classification/val/[02469]/*.png | awk 'NR % 36 == 1') \
		--out $(WORK_DIR)/grad_cam.png
	@echo "Checkpoint:        $$(cat $(WORK_DIR)/last_checkpoint)"
	@echo "Loss and accuracy: $(WORK_DIR)/curves.png"
	@echo "Confusion matrix:  $(WORK_DIR)/confusion_matrix.png"
	@echo "Grad-CAM:          $(WORK_DIR)/grad_cam.png"

# Two processes with one thread each, as most tests use one core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: env
	$(PYTEST)

test-all: env
	$(PYTEST) -m 'slow or not slow'

GPU_BENCHMARK = $(BIN)/python tools/benchmark.py --device cuda --rounds 5 --seconds 0.1 \
	$(foreach arch,m0 m1 m2 m3 m4 m5,efficientvit-$(arch) timm::efficientvit_$(arch))

gpu-check: env
	$(PYTEST) --dist loadfile -m gpu tests/gpu
	$(GPU_BENCHMARK) --batch 256 --forms folded folded-float16 folded-bfloat16 \
		--out benchmarks/gpu_throughput.csv
	$(GPU_BENCHMARK) --batch 1 --forms eager compiled cudagraph cudagraph-float16 \
		--out benchmarks/gpu_latency.csv
	$(BIN)/python tools/dev/benchmark_tables.py

# In a copy with few digits, so that it takes minutes, and without `make test`, which is run elsewhere.
test-readme: COPY := build/readme
test-readme: env
	rm -rf $(COPY)
	mkdir -p $(COPY)
	git ls-files -z | xargs -0 cp --parents -P -t $(COPY)
	ln -s $(abspath $(VENV)) $(COPY)/.venv
	cd $(COPY) && export PYTHONPATH=$$PWD && \
		.venv/bin/python setup.py --quiet --version && \
		.venv/bin/python tools/prepare_digits.py --num-train 16 --num-val 8 && \
		find data/digits/classification -name '*[1-9].png' -delete && \
		sed '/^make test /d' README.md > commands.md && \
		.venv/bin/python tools/dev/run_commands.py commands.md

# In a separate environment, with a PyTorch release of that time.
test-openmmlab:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))' || \
		{ echo "error: PyTorch 2.1 needs Python 3.10 or 3.11. Pass one with PYTHON=path."; exit 1; }
	$(MAKE) test demo demo-classification VENV=.venv-openmmlab OPENMMLAB=requirements/openmmlab \
		WORK_DIR='work_dirs/openmmlab/$$@'

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
