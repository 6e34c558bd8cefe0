"""Which setting is meant by a name that is none, by other trainers' names, place and spelling; what a value must be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from andfast.training.config import RENAMED

# What BasicSR, neosr and traiNNer-redux call settings, and what people call them otherwise.
_SYNONYMS = {
    "config": "opt opt_path yml yaml",
    "scale": "upscale upscale_factor sf",
    "seed": "manual_seed random_seed",
    "run_dir": "name output output_dir out experiment experiments_root save_dir work_dir",
    "device": "gpu gpus cuda num_gpu",
    "resume": "resume_state auto_resume checkpoint",
    "compile": "compile_g torch_compile use_compile",
    "data.hr": "dataroot dataroot_gt gt dataset datasets train_dir train_data hr_dir",
    "data.val_hr": "val_dir val_data val_dataroot_gt",
    "data.val_pairs": "dataroot_lq lq",
    "data.weights": "folder_weights dataset_weights",
    "data.workers": "num_workers num_worker num_worker_per_gpu",
    "data.flip": "hflip use_hflip",
    "data.rotate": "rot use_rot",
    "generator.name": "network_g net_g arch architecture model",
    "generator.features": "num_feat nf channels",
    "generator.depth": "num_conv num_block nb blocks layers",
    "generator.init": "pretrain pretrained pretrain_network_g pretrain_model pretrained_model",
    "discriminator.name": "network_d net_d",
    "discriminator.init": "pretrain_network_d",
    "discriminator.learning_rate": "optim_d lr_d",
    "attack.psnr_range": "min_psnr max_psnr psnr budget",
    "attack.epsilon": "eps radius",
    "attack.step_size": "alpha step_len",
    "attack.steps": "num_steps pgd_steps",
    "loss.pixel": "pixel_opt pixel_loss criterion",
    "loss.perceptual": "perceptual_opt perceptual_weight lambda_perceptual",
    "loss.gan": "gan_opt gan_weight lambda_gan",
    "loss.frequency": "fft fft_opt ff_opt ff_loss fft_weight",
    "train.learning_rate": "lr lr_g base_lr",
    "train.optimizer": "optim optim_g optimizer_g",
    "train.schedule": "scheduler lr_scheduler",
    "train.weight_decay": "wd",
    "train.clip_grad": "grad_clip max_norm max_grad_norm gradient_clip clip use_grad_clip grad_clip_norm",
    "train.iterations": "num_iter num_iters total_iter total_iters niter n_iter max_iter max_iters iters iter epochs",
    "train.batch_size": "batch bs batch_size_per_gpu minibatch",
    "train.patch_size": "gt_size lq_size crop_size patch crop",
    "train.micro_batch": "accum_iter accumulate grad_accum",
    "train.ema_decay": "ema",
    "train.precision": "amp use_amp amp_bf16 bf16 fp16 half",
    "train.validate_every": "val_freq val_every validate",
    "train.save_every": "save_checkpoint_freq save_freq",
    "train.log_every": "print_freq log_freq",
}
_MEANT = {word: setting for setting, words in _SYNONYMS.items() for word in words.split()}


# The parser's messages about values: of a choice, of a choice or an import path, of a range.
_CHOICE = re.compile(r'Parser key "([\w.]+)":\s+Expected a typing\.Literal\[(.*)\]\. Got value: (.*)')
_CHOICE_OR_CLASS = re.compile(
    r'Parser key "([\w.]+)":.*?typing\.Literal\[([^\]]*)\].*ImportPath.*Given value: (.*)', re.DOTALL
)
_RANGE = re.compile(r'Parser key "([\w.]+)":\s+Not of type \w+: (\S+) does not conform to restriction v(>=?)(\S+)')


def about_value(message: str) -> str | None:
    """The parser's message about a value in plain words; None for other messages."""
    if found := _RANGE.search(message):
        key, value, sign, end = found.groups()
        return f"{key} is {value}; it must be {'above' if sign == '>' else 'at least'} {end}"
    found = _CHOICE.search(message) or _CHOICE_OR_CLASS.search(message)
    if found is None:
        return None
    key, listed, value = found.groups()
    choices = [choice.strip("'\"") for choice in listed.split(", ")]
    like = difflib.get_close_matches(value.lower(), choices, n=1)
    it = f"did you mean {like[0]}? It" if like else "it"
    own = "" if found.re is _CHOICE else ", or a class of your own, as my_file.py:MyClass"
    return f"{key} is {value}; {it} must be one of {', '.join(choices)}{own}"


def meant_by(key: str, known: Sequence[str]) -> str | None:
    """The setting that a wrong key most probably stands for; None: there is no telling.

    Args:
        key: dotted.
        known: the dotted names of the settings there are.
    """
    parent, _, leaf = key.lower().rpartition(".")
    of_other_trainers = [_MEANT.get(name) for name in (leaf, *reversed(parent.split(".")))]
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    in_place = [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.8)]
    elsewhere = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    far = [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1)]
    candidates = [RENAMED.get(key), *in_place, *same_leaf, *of_other_trainers, *elsewhere, *far]
    return next((name for name in candidates if name in known), None)
