# RTMDet on COCO with EfficientViT-M4, trained as RTMDet-tiny; not measured on COCO.
_base_ = ['_base_/rtmdet_evit_m4.py', '_base_/rtmdet_300e.py']
