"""ONNX: files and models that cannot be pruned give one clear error, whatever is wrong."""

import sys

import numpy as np
import pytest

from nettrim_solver.exceptions import (
    MissingDependencyError,
    NettrimError,
    ProblemError,
    ProblemFileError,
)
from nettrim_solver.frameworks import from_onnx, inspect_onnx, onnx_file

from .test_onnx import BUILDERS, VECTORS, Graph, N, built, gemm, onnx

helper, numpy_helper = onnx.helper, onnx.numpy_helper


def small():
    g = Graph(VECTORS)
    return g.model(gemm(g, "x", 5, 3))


def test_what_is_no_model(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ProblemFileError, match="there is no file"):
        from_onnx(path)
    with pytest.raises(ProblemFileError, match="cannot be read: Is a directory"):
        from_onnx(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ProblemFileError, match="but is empty"):
        from_onnx(path)
    path.write_bytes(b"PK\x03\x04 this is another file")
    with pytest.raises(ProblemFileError, match="must hold a whole ONNX model"):
        from_onnx(path)
    path.write_bytes(small().SerializeToString()[:-40])
    with pytest.raises(ProblemFileError, match="must hold a whole ONNX model"):
        from_onnx(path)
    path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    with pytest.raises(ProblemFileError, match="no valid ONNX model"):
        from_onnx(path)
    for other in (None, 3, [1, 2], np.ones(3)):
        with pytest.raises(ProblemError, match="must be a path, the bytes of a file"):
            from_onnx(other)


def test_invalid_models():
    model = small()
    model.graph.node[0].input[0] = "nobody"
    with pytest.raises(ProblemFileError, match="nobody"):
        from_onnx(model)
    model = small()
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(ProblemError, match="Nonsense"):
        from_onnx(model)
    model = small()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 3), "f"), "c0"))
    with pytest.raises(ProblemError, match="shapes do not fit: .*between 4 and 5"):
        from_onnx(model)
    model = small()
    model.graph.node[0].domain = "of.mine"
    model.opset_import.append(helper.make_opsetid("of.mine", 1))
    with pytest.raises(ProblemError, match="onnxruntime says"):
        from_onnx(model)


def test_several_inputs_or_none():
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("mask", 1, [3]))
    with pytest.raises(ProblemError, match=r"'x' must be the only one .*: give the others' values"):
        from_onnx(model, input="x")
    with pytest.raises(ProblemError, match="input must be one of"):
        from_onnx(model, input="y")
    with pytest.raises(ProblemError, match="constants must be inputs among"):
        from_onnx(model, constants={"y": np.ones(3)})
    with pytest.raises(ProblemError, match="constants must map names"):
        from_onnx(model, constants=[1])
    with pytest.raises(ProblemError, match="output must be given"):
        from_onnx(small(), output="y")
    with pytest.raises(ProblemError, match="but has none"):
        from_onnx(small(), constants={"x": np.ones((1, 5))})


def test_no_layer_to_prune():
    g = Graph(VECTORS)
    with pytest.raises(ProblemError, match="its operators are Relu, Sin$"):
        from_onnx(g.model(g("Sin", g("Relu", "x"))))
    g = Graph((N, 5, 5))
    with pytest.raises(ProblemError, match="operators are MatMul"):
        from_onnx(g.model(g("MatMul", "x", "x")))
    g = Graph((N, 1, 5, 5))
    W = g("ReduceMean", "x", np.array([0]), keepdims=1)
    model = g.model(g("Conv", "x", W))
    with pytest.raises(ProblemError, match="something else|other outputs for several samples"):
        from_onnx(model)
    g = Graph((1, 1, 5, 5))
    model = g.model(g("Conv", "x", g("Sin", "x")))
    with pytest.raises(ProblemError, match="its weights are computed from the input"):
        from_onnx(model)
    (note,) = inspect_onnx(model)
    assert note.shape == (1, 1, 5, 5) and "computed from the input" in note.reason


def test_weights_that_are_no_floats():
    g = Graph((N, 5))
    half = g("Cast", "x", to=10)
    W = numpy_helper.from_array(np.ones((5, 3), np.float16), "W")
    g.initializers.append(W)
    model = g.model(g("Cast", g("MatMul", half, "W"), to=1))
    with pytest.raises(ProblemError, match="must be float32 or float64, but are float16"):
        from_onnx(model)
    g = Graph((N, 5))
    model = g.model(g("Gemm", "x", np.full((5, 3), np.nan, np.float32)))
    with pytest.raises(ProblemError, match="must be finite"):
        from_onnx(model)


def test_control_flow():
    g = Graph(VECTORS)
    branch = helper.make_graph([helper.make_node("Neg", ["t0_0"], ["b"])], "then", [],
                               [helper.make_tensor_value_info("b", 1, None)])  # fmt: skip
    x = gemm(g, "x", 5, 3)
    x = g("If", np.array(True), then_branch=branch, else_branch=branch)
    with pytest.raises(ProblemError, match="is control flow"):
        from_onnx(g.model(x))


@pytest.mark.parametrize("axis", [0, None])
def test_samples_that_are_mixed(axis):
    g = Graph(VECTORS)
    axes = [] if axis is None else [np.array([axis])]
    model = g.model(g("Sub", gemm(g, "x", 5, 3), g("ReduceMean", "x", *axes, keepdims=1))
                    if axis is None else
                    g("Mul", gemm(g, "x", 5, 5), g("ReduceMean", "x", *axes)))  # fmt: skip
    with pytest.raises(ProblemError, match="every sample by itself"):
        from_onnx(model)


def test_an_output_that_is_text():
    model, text = small(), onnx.TensorProto.STRING
    name = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Cast", [name], ["text"], to=text))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("text", text, [N, 3]))
    with pytest.raises(ProblemError, match="must be numbers"):
        from_onnx(model)


def test_samples_that_do_not_fit_into_memory():
    g = Graph((N, 1 << 20, 1 << 20))
    with pytest.raises(ProblemError, match="must fit into memory"):
        from_onnx(g.model(g("Relu", "x")))


def test_sizes_and_constants_of_another_kind():
    for shape in (5, "ab", (0,), (2.5,), (-1,)):
        with pytest.raises(ProblemError, match="input_shape must hold the sizes of one sample"):
            from_onnx(small(), input_shape=shape)
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("mask", 1, [3]))
    with pytest.raises(ProblemError, match="constants: 'mask' must be an array"):
        from_onnx(model, constants={"mask": "nothing"})


def test_models_of_more_than_two_gigabytes(monkeypatch, tmp_path):
    model = small()
    monkeypatch.setattr(onnx_file, "LARGEST", model.ByteSize() - 1)
    with pytest.raises(ProblemError, match="must fit into 2 GB"):
        from_onnx(model)
    with pytest.raises(ProblemError, match="one file of 2 GB"):
        onnx_file.save(model, tmp_path / "large.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages(monkeypatch):
    for name in ("onnxruntime", "onnx"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(MissingDependencyError, match=rf"^{name} is not .*\[onnx\]"):
                from_onnx(b"")


# Mutated files -----------------------------------------------------------------------------------


def mutated(content, rng):
    """A file with a few bytes changed, cut off, left out, doubled or inserted."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        at, kind = int(rng.integers(len(data))), int(rng.integers(6))
        length = int(rng.integers(1, 20))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        else:
            data[at:at] = rng.bytes(length)
    return bytes(data)


ODD = [-(2**62), -1, 0, 1, 2, 3, 7, 1000, 2**31, 2**62]


def altered(content, rng):
    """A file that can be parsed, with a few of its fields changed."""
    model = onnx.load_model_from_string(content)
    graph = model.graph

    def one(things):
        return things[int(rng.integers(len(things)))]

    def attribute():
        nodes = [node for node in graph.node if node.attribute]
        found = one(one(nodes).attribute)
        if found.ints:
            found.ints[int(rng.integers(len(found.ints)))] = one(ODD)
        elif found.HasField("s"):
            found.s = one([b"SAME_UPPER", b"\xff", b"tanh", b""])
        elif found.HasField("f"):
            found.f = one([np.nan, np.inf, 0.0, -1.0])
        else:
            found.i = one(ODD)

    def connection():
        node = one(graph.node)
        names = ["", "nobody", "x", *(t.name for t in graph.initializer), *one(graph.node).output]
        if node.input:
            node.input[int(rng.integers(len(node.input)))] = one(names)

    def tensor():
        if graph.initializer:
            found = one(graph.initializer)
            found.data_type = one([1, 1, 2, 7, 10, 11])
            if found.dims:
                found.dims[int(rng.integers(len(found.dims)))] = one(ODD)

    def place():
        kind = one([*graph.input, *graph.output]).type.tensor_type
        if kind.shape.dim:
            one(kind.shape.dim).dim_value = one(ODD)
        kind.elem_type = one([1, 1, 1, 2, 7, 8, 11, 16])

    def operator():
        one(graph.node).op_type = one(["Gemm", "Conv", "MatMul", "Add", "Reshape", "Clip", "LSTM"])

    def version():
        model.opset_import[0].version = int(rng.integers(1, 27))

    def missing():
        del one([graph.node, graph.initializer, graph.output, graph.input])[:1]

    for _ in range(int(rng.integers(1, 4))):
        one([attribute, attribute, connection, tensor, place, operator, version, missing])()
    return model.SerializeToString()


def originals():
    names = ["others", "Constant nodes", "Conv", "1-d", "pooling", "recurrent", "computed shape"]
    return [built(*BUILDERS[name]).SerializeToString() for name in names]


def assert_only_our_own(seeds):
    contents = originals()
    failed = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        content = (altered if seed % 2 else mutated)(contents[seed // 2 % len(contents)], rng)
        try:
            from_onnx(content)
        except NettrimError as error:
            assert len(str(error)) > 10
            failed += 1
    return failed


def test_damaged_files_raise_our_own_errors():
    assert assert_only_our_own(range(300)) > 150


@pytest.mark.slow
def test_many_damaged_files_raise_our_own_errors():
    assert assert_only_our_own(range(300, 10_500)) > 5_000
