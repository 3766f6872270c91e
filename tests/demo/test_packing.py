"""A packed row gives each of its dialogues exactly the numbers it would get alone."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.packing import Row, arrays


def _row() -> Row:
    row = Row(16)
    row.add([5, 6, 7], [0, 0, 0], branch=False)
    row.add([8, 9], [0, 1], branch=True)
    row.add([10, 11, 12, 13], [0, 0, 1, 1], branch=True)
    return row


def test_positions_and_targets_go_on_from_the_prefix() -> None:
    packed = arrays([_row()])
    assert packed["positions"][0, :9].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]
    assert packed["target"][0].nonzero()[0].tolist() == [4, 7, 8]
    assert packed["ids"][0, 9:].tolist() == [0] * 7


def test_branches_do_not_see_each_other() -> None:
    mask = arrays([_row()])["mask"][0, 0]
    assert mask[4, :9].tolist() == [True] * 5 + [False] * 4
    assert mask[6, :9].tolist() == [True] * 3 + [False] * 2 + [True, True, False, False]
    assert not np.triu(mask, 1).any()


def test_a_branch_that_does_not_fit_changes_nothing() -> None:
    row = _row()
    before = list(row.ids), list(row.positions), list(row.target), list(row.spans)
    assert not row.add([1] * 8, [0] * 8, branch=True)
    assert before == (row.ids, row.positions, row.target, row.spans)


def test_packed_branches_compute_what_separate_dialogues_do() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    packed = {name: torch.from_numpy(array) for name, array in arrays([_row()]).items()}
    with torch.inference_mode():
        together = model(
            input_ids=packed["ids"], attention_mask=packed["mask"], position_ids=packed["positions"]
        ).logits[0]
        first = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0]
        second = model(input_ids=torch.tensor([[5, 6, 7, 10, 11, 12, 13]])).logits[0]
    torch.testing.assert_close(together[:5], first, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[5:9], second[3:], atol=1e-5, rtol=1e-4)


def test_training_attention_is_causal_without_a_mask() -> None:
    """transformers passes no mask where plain causal order is meant."""
    from demo.attention import NAME

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=NAME).eval()
    reference = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    reference.load_state_dict(model.state_dict())
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, atol=1e-5, rtol=1e-4)


def test_training_attention_agrees_with_the_reference() -> None:
    from demo.attention import bmm_attention

    torch.manual_seed(1)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None].expand(2, 1, 5, 5)
    got, _ = bmm_attention(torch.nn.Identity(), query, key, value, mask)
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(got, want.transpose(1, 2))
