"""New tokens, trained with what people train with: the Trainer of transformers, accelerate, Lightning, PEFT's LoRA.

Each run is compared with an oracle that knows nothing of frostline: the plain model, whose table is put together in
every forward from a constant and a small Parameter. A small random Llama; nothing is downloaded.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

NEW = ["<tool>", "</tool>"]
TEXTS = ["the <tool>cat</tool> sat on", "call the <tool>mat</tool>", "snow melts", "use <tool><tool> it"]
STEPS, RATE, DECAY, CLIP = 6, 0.05, 0.1, 0.1
TABLE = "model.embed_tokens.weight"
CHECKPOINTING = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing` is deprecated:FutureWarning")


def make_tokenizer() -> Any:
    bytewise = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.pre_tokenizer, plain.decoder = bytewise, tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    plain.train_from_iterator(
        ["the cat sat on the mat", "use it"],
        tokenizers.trainers.BpeTrainer(
            vocab_size=270, initial_alphabet=bytewise.alphabet(), special_tokens=special, show_progress=False
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def make_model(rows: int) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=rows,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


class Case:
    """A model with new tokens, its plain twin, and data that uses them."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()
        self.base = make_model(len(self.tokenizer))
        self.old = len(self.tokenizer)
        self.model = copy.deepcopy(self.base)
        self.plan = fl.add_tokens(self.model, self.tokenizer, NEW)
        self.plain = copy.deepcopy(self.model)
        fl.merge(self.plain)
        self.before = tensors(self.model)

    @property
    def data(self) -> list[dict[str, Tensor]]:
        """One text per item; each batch holds all of them, so their order cannot matter."""
        ids = self.tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
        return [
            {"input_ids": row, "attention_mask": mask, "labels": row.where(mask == 1, -100)}
            for row, mask in zip(ids["input_ids"], ids["attention_mask"], strict=True)
        ]

    @property
    def batch(self) -> dict[str, Tensor]:
        return torch.utils.data.default_collate(self.data)

    def expect_only_new_rows_moved(self, model: Any | None = None) -> None:
        after = tensors(self.model if model is None else model)
        tied = {TABLE, "lm_head.weight"}
        assert after.keys() == self.before.keys()
        for name, value in self.before.items():
            kept = slice(0, self.old) if name in tied else slice(None)
            assert torch.equal(after[name][kept], value[kept]), name
        for name in tied:
            assert (after[name][self.old :] != self.before[name][self.old :]).any(dim=1).all(), name

    def expected(self, steps: int = STEPS, autocast: bool = False) -> tuple[list[float], Tensor]:
        """Losses, and the rows at the end, of the plain model: AdamW with decay and clipping over the rows alone."""
        ids = torch.arange(self.old, self.old + len(NEW))
        table = self.plain.get_input_embeddings().weight.detach().clone()
        rows = nn.Parameter(table[ids])
        optimizer = torch.optim.AdamW([rows], lr=RATE, weight_decay=DECAY)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            whole = table.index_put((ids,), rows)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = torch.func.functional_call(self.plain, {TABLE: whole}, (), self.batch, tie_weights=True).loss
            loss.backward()
            nn.utils.clip_grad_norm_([rows], CLIP)
            optimizer.step()
            losses.append(loss.item())
        return losses, rows.detach()


def tensors(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(model: Any, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in tensors(model).items() if not torch.equal(value, before[name])}


@pytest.fixture
def case() -> Case:
    return Case()


def close(losses: list[float], expected: list[float], tolerance: float = 1e-5) -> None:
    assert len(losses) == len(expected)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), atol=tolerance, rtol=tolerance)
    assert losses[-1] < losses[0]


# The Trainer of transformers


def trainer(case: Case, folder: Path, model: Any = None, **options: Any) -> Any:
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": len(TEXTS),
        "per_device_eval_batch_size": len(TEXTS),
        "max_steps": STEPS,
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return transformers.Trainer(
        case.model if model is None else model,
        transformers.TrainingArguments(**(arguments | options)),
        train_dataset=case.data,
        eval_dataset=case.data,
    )


def losses_of(run: Any) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_trainer_learns_the_new_rows_as_a_plain_model_would(case: Case, tmp_path: Path) -> None:
    run = trainer(case, tmp_path)
    run.train()
    expected, rows = case.expected()
    close(losses_of(run), expected)
    torch.testing.assert_close(case.model.get_input_embeddings().weight.learned.detach(), rows, atol=1e-4, rtol=1e-4)
    case.expect_only_new_rows_moved()


def test_trainer_gives_its_optimizer_the_learned_rows_alone_and_with_decay(case: Case, tmp_path: Path) -> None:
    run = trainer(case, tmp_path)
    optimizer = run.create_optimizer()
    held = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p): DECAY for p in case.plan.parameters()}


def test_trainer_resumes_from_a_checkpoint_as_if_it_had_not_stopped(case: Case, tmp_path: Path) -> None:
    other = copy.deepcopy(case.model)
    whole = trainer(case, tmp_path / "whole", lr_scheduler_type="linear")
    whole.train()
    case.expect_only_new_rows_moved()
    first = trainer(case, tmp_path / "parts", other, lr_scheduler_type="linear", save_strategy="steps", save_steps=3)
    first.train()
    fresh = copy.deepcopy(case.base)
    fl.add_tokens(fresh, case.tokenizer, NEW)
    rest = trainer(case, tmp_path / "parts", fresh, lr_scheduler_type="linear")
    rest.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert losses_of(rest)[-3:] == losses_of(whole)[-3:]
    mine, theirs = tensors(case.model), tensors(fresh)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_trainer_ends_with_its_best_checkpoint(case: Case, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    run = trainer(case, tmp_path, **options, **best)  # the greatest loss, so that the last is not the best
    run.train()
    scores = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert scores[0] == max(scores) > scores[-1]
    assert run.evaluate()["eval_loss"] == scores[0]
    case.expect_only_new_rows_moved()


def test_trainer_saves_a_plain_model(case: Case, tmp_path: Path) -> None:
    run = trainer(case, tmp_path / "run")
    run.train()
    run.save_model(str(tmp_path / "model"))
    opened = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert opened.get_output_embeddings().weight is opened.get_input_embeddings().weight
    assert type(opened.get_input_embeddings()) is nn.Embedding
    mine, theirs = tensors(case.model), tensors(opened)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    case.expect_only_new_rows_moved(opened)


@CHECKPOINTING
def test_trainer_in_bfloat16_with_checkpointing_and_accumulation(case: Case, tmp_path: Path) -> None:
    options = {"bf16": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    run = trainer(case, tmp_path, per_device_train_batch_size=2, seed=1, **options)
    run.train()
    expected, _ = case.expected(autocast=True)
    close(losses_of(run), expected, tolerance=0.02)
    case.expect_only_new_rows_moved()


# accelerate


def accelerated(model: nn.Module, plan: fl.Plan, precision: str) -> tuple[Any, Any, Any]:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(
        reset_partial_state=True
    )  # the Trainer of a test before may be there
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    optimizer = torch.optim.AdamW(plan.parameters(), lr=RATE, weight_decay=DECAY)
    return accelerator, *accelerator.prepare(model, optimizer)


def steps_of(accelerator: Any, model: Any, optimizer: Any, batch: dict[str, Tensor], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_accelerate_learns_the_new_rows_as_a_plain_model_would(case: Case, tmp_path: Path) -> None:
    accelerator, model, optimizer = accelerated(case.model, case.plan, "no")
    losses = steps_of(accelerator, model, optimizer, case.batch, STEPS)
    expected, rows = case.expected()
    close(losses, expected)
    torch.testing.assert_close(case.plan.parameters()[0].detach(), rows, atol=1e-4, rtol=1e-4)
    case.expect_only_new_rows_moved()
    state = accelerator.get_state_dict(model)
    assert state.keys() == case.before.keys()
    case.plain.load_state_dict(state)
    assert not moved(case.plain, tensors(case.model))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_resumes_from_its_saved_state_as_if_it_had_not_stopped(
    case: Case, precision: str, tmp_path: Path
) -> None:
    whole = copy.deepcopy(case.model)
    plan = fl.add_tokens(whole, case.tokenizer, NEW)
    expected = steps_of(*accelerated(whole, plan, precision), case.batch, STEPS)
    first = accelerated(case.model, case.plan, precision)
    steps_of(*first, case.batch, 3)
    first[0].save_state(str(tmp_path))
    fresh = copy.deepcopy(case.base)
    rest = accelerated(fresh, fl.add_tokens(fresh, case.tokenizer, NEW), precision)
    rest[0].load_state(str(tmp_path))
    assert steps_of(*rest, case.batch, 3) == expected[3:]
    assert expected[-1] < expected[0]
    mine, theirs = tensors(whole), tensors(fresh)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    case.expect_only_new_rows_moved(fresh)


# Lightning


def lightning_module(model: Any) -> Any:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.losses = model, []

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            loss: Tensor = self.model(**batch).loss
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            learns = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.AdamW(learns, lr=RATE, weight_decay=DECAY)

    return Module()


def fit(case: Case, model: Any, folder: Path, steps: int, resume: Path | None = None, **options: Any) -> Any:
    """Train in a LightningModule; the module, with its losses, and the trainer."""
    module, lightning = lightning_module(model), pytest.importorskip("lightning")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    loader = torch.utils.data.DataLoader(case.data, batch_size=len(TEXTS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice on workers and folders
        run = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            gradient_clip_val=CLIP,
            enable_model_summary=False,
            default_root_dir=folder,
            **quiet,
            **options,
        )
        run.fit(module, loader, ckpt_path=None if resume is None else str(resume))
    return module, run


def test_lightning_learns_the_new_rows_as_a_plain_model_would(case: Case, tmp_path: Path) -> None:
    module, _ = fit(case, case.model, tmp_path, STEPS)
    expected, rows = case.expected()
    close(module.losses, expected)
    torch.testing.assert_close(case.plan.parameters()[0].detach(), rows, atol=1e-4, rtol=1e-4)
    case.expect_only_new_rows_moved()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_resumes_from_its_checkpoint_as_if_it_had_not_stopped(
    case: Case, precision: str, tmp_path: Path
) -> None:
    whole = copy.deepcopy(case.model)
    expected, _ = fit(case, whole, tmp_path, STEPS, precision=precision)
    _, first = fit(case, case.model, tmp_path, 3, precision=precision)
    first.save_checkpoint(tmp_path / "third.ckpt")
    fresh = copy.deepcopy(case.base)
    fl.add_tokens(fresh, case.tokenizer, NEW)
    rest, _ = fit(case, fresh, tmp_path, STEPS, tmp_path / "third.ckpt", precision=precision)
    assert rest.losses == expected.losses[3:]
    assert expected.losses[-1] < expected.losses[0]
    mine, theirs = tensors(whole), tensors(fresh)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    case.expect_only_new_rows_moved(fresh)


def test_a_lightning_checkpoint_holds_plain_keys(case: Case, tmp_path: Path) -> None:
    _, run = fit(case, case.model, tmp_path, 1)
    run.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("model.") for name in saved} == case.before.keys()
    assert torch.equal(saved[f"model.{TABLE}"], tensors(case.model)[TABLE])
    case.expect_only_new_rows_moved()


# LoRA of PEFT beside the rows


def with_lora(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    targets = options.pop("target_modules", ["q_proj", "v_proj"])
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", **options))


LORA = {"*lora_*": fl.everything}


@CHECKPOINTING
def test_lora_and_new_rows_learn_together_under_the_trainer(case: Case, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    adapted = with_lora(case.base)
    plan = fl.add_tokens(adapted, tokenizer, NEW, also=LORA)
    before = tensors(adapted)
    assert sum(line.learns == "rows" for line in plan.lines) == 1
    run = trainer(case, tmp_path, adapted)
    run.train()
    losses = losses_of(run)
    assert losses[-1] < losses[0]
    changed = moved(adapted, before)
    tables = {name for name in changed if "lora_" not in name}
    assert {name.rpartition("model.")[2] for name in tables} == {"embed_tokens.weight", "lm_head.weight"}
    assert len(changed - tables) == 2 * 2 * 2  # A and B of q and v in both layers
    for name in tables:
        assert torch.equal(tensors(adapted)[name][: case.old], before[name][: case.old])


@CHECKPOINTING
def test_one_small_file_holds_the_rows_and_the_adapters(case: Case, tmp_path: Path) -> None:
    fresh, tokenizer = copy.deepcopy(case.base), make_tokenizer()
    adapted = with_lora(case.base)
    fl.add_tokens(adapted, tokenizer, NEW, also=LORA)
    trainer(case, tmp_path, adapted).train()
    fl.save_learned(adapted, tmp_path / "learned.safetensors")
    assert (tmp_path / "learned.safetensors").stat().st_size < 10_000
    again = with_lora(fresh)
    fl.add_tokens(again, make_tokenizer(), NEW, also=LORA)
    untrained = tensors(again)
    fl.load_learned(again, tmp_path / "learned.safetensors")
    assert moved(again, untrained)
    assert not moved(again, tensors(adapted))


class SaveLearned(transformers.TrainerCallback):  # type: ignore[name-defined,misc]
    """What docs/new-tokens.md tells people to write: a Trainer's checkpoint of a PeftModel has the adapters alone."""

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        fl.save_learned(model, f"{args.output_dir}/checkpoint-{state.global_step}/learned.safetensors")


@CHECKPOINTING
def test_rows_beside_lora_resume_with_a_callback_and_are_lost_without_it(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = make_model(len(tokenizer) + 10)  # rows to spare: PEFT sees no growth, and saves no table

    def start() -> Any:
        adapted = with_lora(copy.deepcopy(base))
        fl.add_tokens(adapted, make_tokenizer(), NEW, also=LORA)
        return adapted

    case, options = Case(), {"save_strategy": "steps", "save_steps": 3}
    whole, first, rest, careless = start(), start(), start(), start()
    run = trainer(case, tmp_path / "whole", whole)
    run.train()
    stopped = trainer(case, tmp_path / "parts", first, **options)
    stopped.add_callback(SaveLearned())
    stopped.train()
    checkpoint = tmp_path / "parts" / "checkpoint-3"
    fl.load_learned(rest, checkpoint / "learned.safetensors")
    resumed = trainer(case, tmp_path / "parts", rest)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses_of(resumed)[-3:] == losses_of(run)[-3:]
    assert not moved(rest, tensors(whole))
    lost = trainer(case, tmp_path / "parts", careless)
    lost.train(resume_from_checkpoint=str(checkpoint))
    assert {name.rpartition("model.")[2] for name in moved(careless, tensors(whole))} >= {"embed_tokens.weight"}


@CHECKPOINTING
@pytest.mark.parametrize("first", ["rows", "adapters"])
def test_rows_and_adapters_merge_into_a_plain_model_in_either_order(case: Case, first: str, tmp_path: Path) -> None:
    adapted = with_lora(case.base)
    fl.add_tokens(adapted, make_tokenizer(), NEW, also=LORA)
    trainer(case, tmp_path, adapted).train()
    adapted.eval()
    with torch.no_grad():
        expected = adapted(**case.batch).logits
    if first == "rows":
        fl.merge(adapted)
        plain = adapted.merge_and_unload()
    else:
        plain = adapted.merge_and_unload()
        fl.merge(plain)
    plain.save_pretrained(tmp_path / "plain")
    opened = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert [type(module) for module in plain.modules()] == [type(module) for module in opened.modules()]
    assert not moved(opened, tensors(plain))
    with torch.no_grad():
        torch.testing.assert_close(opened(**case.batch).logits, expected, atol=1e-5, rtol=1e-5)


@CHECKPOINTING
def test_get_peft_model_after_add_tokens_stops_the_first_step(case: Case, tmp_path: Path) -> None:
    adapted = with_lora(case.model)  # it switches off every parameter that is not its own
    before = tensors(adapted)
    with pytest.raises(fl.StaleOptimizerError, match=r"switched off since the plan .*as get_peft_model does"):
        trainer(case, tmp_path, adapted).train()
    assert not moved(adapted, before)
    fl.add_tokens(adapted, case.tokenizer, NEW, also=LORA)  # the plan made again, after that
    trainer(case, tmp_path, adapted).train()
    assert any("embed_tokens" in name for name in moved(adapted, before))


@CHECKPOINTING
def test_an_adapter_on_the_table_itself_is_refused(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, on tied weights
        adapted = with_lora(case.base, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(fl.PartialTensorError, match=r"Exclude embedding and head from .*adapters' target_modules"):
        fl.add_tokens(adapted, make_tokenizer(), NEW, also=LORA)
