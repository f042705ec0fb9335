# Everything here sets itself up: it needs Python 3.10 to 3.13, a C++ compiler, and nothing else.
#   make demo        train and evaluate a detector on real handwritten digits
#   make demo-classification   the same for a classifier
#   make demo-segmentation     the same for boxes and masks
#   make test        the fast tests; make test-all runs the slow ones too
#   make test-openmmlab   the fast tests and both demos on the original releases of OpenMMLab
#   make lint        ruff, lint and format; make format mends what it can
#   make docs        the documentation, in build/site
#   make test-readme the commands of README.md as they are written, on few digits
# VENV=path shares one environment between checkouts, PYTHON=path chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
WORK_DIR ?= work_dirs/$@
BIN := $(VENV)/bin
# The checkout comes before what is installed, so that a shared environment runs this code.
export PYTHONPATH := $(CURDIR)
# Which OpenMMLab: the maintained builds, or in requirements/openmmlab the original releases.
OPENMMLAB ?= requirements
REQUIREMENTS := $(sort $(wildcard requirements/*.txt $(OPENMMLAB)/*.txt))
# The name holds a digest of what was asked for: a change of it installs, and nothing else does.
INSTALLED := $(VENV)/installed-$(shell cat $(REQUIREMENTS) setup.py | cksum | cut -d ' ' -f 1)
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c $(OPENMMLAB)/constraints.txt

.PHONY: env demo demo-classification demo-segmentation test test-all test-readme \
	test-openmmlab lint format docs clean

env: $(INSTALLED)

$(INSTALLED):
	@command -v $(PYTHON) >/dev/null || \
		{ echo "error: $(PYTHON) not found: install Python 3.10 to 3.13, or name one with PYTHON=path."; exit 1; }
	@$(PYTHON) tools/dev/check_machine.py $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision numpy -r requirements/build.txt
	@echo "Compiling mmcv's operators, unless pip has kept them: 6 to 20 minutes on two cores."
	CFLAGS=-g0 $(PIP) --no-build-isolation -r $(OPENMMLAB)/mminstall.txt
	$(PIP) --no-build-isolation -r requirements/runtime.txt -r $(OPENMMLAB)/optional.txt \
		-r requirements/tests.txt -r requirements/docs.txt
	@# mmcv asks for opencv-python and others for opencv-python-headless, two builds of the same
	@# files. The headless one alone also works without a display's libraries.
	$(BIN)/python -m pip uninstall --yes opencv-python opencv-python-headless
	$(PIP) --no-deps opencv-python-headless
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

data/digits: | env
	$(BIN)/python tools/prepare_digits.py $@

demo: DEMO_CONFIG := configs/retinanet_evit_m4_digits.py
demo-segmentation: DEMO_CONFIG := configs/mask-rcnn_evit_m4_digits.py
demo demo-segmentation: env | data/digits
	$(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(WORK_DIR)
	$(BIN)/python tools/test.py $(DEMO_CONFIG) $$(cat $(WORK_DIR)/last_checkpoint) --work-dir $(WORK_DIR) \
		--show-dir $(WORK_DIR)/val_images --interval 10
	@echo "The checkpoint:     $$(cat $(WORK_DIR)/last_checkpoint)"
	@echo "Loss and mAP:       $(WORK_DIR)/curves.png"
	@echo "True and predicted: $(WORK_DIR)/val_images/, sixteen validation images"
	@echo "Logs:               $(WORK_DIR)/, a folder a run"

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
	@echo "The checkpoint:     $$(cat $(WORK_DIR)/last_checkpoint)"
	@echo "Loss and accuracy:  $(WORK_DIR)/curves.png"
	@echo "True and predicted: $(WORK_DIR)/confusion_matrix.png"
	@echo "Where it looks:     $(WORK_DIR)/grad_cam.png"

# Two processes of one thread each, since most tests keep one core busy.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

test: env
	$(PYTEST)

test-all: env
	$(PYTEST) -m 'slow or not slow'

# In a copy with few digits, so that it takes minutes, and without `make test`, which is run elsewhere.
test-readme: COPY := build/readme
test-readme: env
	rm -rf $(COPY)
	mkdir -p $(COPY)
	git ls-files -z | xargs -0 cp --parents -P -t $(COPY)
	ln -s $(abspath $(VENV)) $(COPY)/.venv
	cd $(COPY) && export PYTHONPATH=$$PWD && \
		.venv/bin/python tools/prepare_digits.py --num-train 16 --num-val 8 && \
		find data/digits/classification -name '*[1-9].png' -delete && \
		sed '/^make test /d' README.md > commands.md && \
		.venv/bin/python tools/dev/run_commands.py commands.md

# In an environment of its own, with the PyTorch of their time.
test-openmmlab:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))' || \
		{ echo "error: PyTorch 2.1 needs Python 3.10 or 3.11: name one with PYTHON=path."; exit 1; }
	$(MAKE) test demo demo-classification VENV=.venv-openmmlab OPENMMLAB=requirements/openmmlab \
		WORK_DIR='work_dirs/openmmlab/$$@'

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
