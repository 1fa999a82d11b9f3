"""Tools of the mutators: initialisers, nodes and records of a model file, found and changed."""

import json

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper


def tensor(proto, name):
    """A copy of an initialiser."""
    return numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name)).copy()


def put(proto, name, array):
    """Gives an initialiser, there or new, these numbers; the type stays the array's."""
    made = numpy_helper.from_array(np.array(array, order="C"), name)  # contiguous, and a scalar stays one
    for held in proto.graph.initializer:
        if held.name == name:
            held.CopyFrom(made)
            return name
    proto.graph.initializer.append(made)
    return name


def edit(proto, name, change):
    """Replaces an initialiser by what `change` makes of it, in its own type."""
    array = tensor(proto, name)
    put(proto, name, np.asarray(change(array.copy())).astype(array.dtype))


def swap(proto, *names):
    """Exchanges the numbers of two initialisers."""
    a, b = (tensor(proto, n) for n in names)
    put(proto, names[0], b)
    put(proto, names[1], a)


def constant(proto, value, dtype=np.float32):
    return put(proto, f"mutant_{len(proto.graph.initializer)}", np.asarray(value, dtype))


def nodes(proto, op, reading=None):
    """Nodes of an operator, those alone that read `reading` where it is given."""
    return [n for n in proto.graph.node if n.op_type == op and (reading is None or reading in n.input)]


def maker(proto, output):
    """The node that makes a tensor."""
    return next(n for n in proto.graph.node if output in n.output)


def gemm(proto, layer):
    """The node of a linear layer."""
    return nodes(proto, "Gemm", f"{layer}.weight")[0]


def add(proto, op, *inputs, out=None, **attributes):
    """A new node at the end; `settle` puts it where it belongs. Gives its output's name."""
    out = out or f"mutant_node_{len(proto.graph.node)}"
    proto.graph.node.append(helper.make_node(op, list(inputs), [out], name=f"mutant_{out}", **attributes))
    return out


def feed(proto, node, place, op, *more, **attributes):
    """Puts an operator in front of one input of a node."""
    node.input[place] = add(proto, op, node.input[place], *more, **attributes)


def through(proto, name, op, *more, **attributes):
    """Puts an operator behind a tensor, for all that read it."""
    node = maker(proto, name)
    node.output[list(node.output).index(name)] = f"{name}_before"
    add(proto, op, f"{name}_before", *more, out=name, **attributes)


def rounded(proto, name, to):
    """Sends a tensor through a narrower type and back."""
    through(proto, name, "Cast", to=TensorProto.FLOAT)
    through(proto, f"{name}_before", "Cast", to=to)


def reroute(proto, old, new):
    """Whatever read `old` reads `new`."""
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def attribute(node, name):
    return next(a for a in node.attribute if a.name == name)


def attributed(node, **values):
    """Sets attributes, there or new."""
    kept = [a for a in node.attribute if a.name not in values]
    made = [helper.make_attribute(name, value) for name, value in values.items()]
    del node.attribute[:]
    node.attribute.extend([*kept, *made])


def rewrite(node, op, *inputs, **attributes):
    """Makes another operator of a node that keeps its outputs."""
    fresh = helper.make_node(op, list(inputs), list(node.output), name=node.name, **attributes)
    node.CopyFrom(fresh)


def softmaxes(proto, sizes):
    """(those of attention, those of the two pools)."""
    found = nodes(proto, "Softmax")
    pools = found[sizes.layers :: sizes.layers + 1]
    return [n for n in found if n not in pools], pools


def steps(proto):
    """(sensor, body) of each Scan."""
    return [(n.output[1][:2], attribute(n, "body").g) for n in nodes(proto, "Scan")]


def pooled(proto, sizes):
    """The product of each sensor's pool: weights of the tokens, tokens."""
    return [nodes(proto, "MatMul", n.output[0])[0] for n in softmaxes(proto, sizes)[1]]


def states(proto, sizes):
    """Each sensor's states (T, N, d), as the query sees them."""
    ends = [gemm(proto, f"{m}_backbone.attn_pool.query").input[0] for m in ("s2", "s1")]
    return [maker(proto, end).input[0] for end in ends]


def records(proto):
    return {p.key: p.value for p in proto.metadata_props}


def write(proto, **values):
    """Sets records; None removes one."""
    changed = {**records(proto), **values}
    helper.set_model_props(proto, {k: v for k, v in changed.items() if v is not None})


def amend(proto, record, **fields):
    """Sets fields of a JSON record."""
    write(proto, **{record: json.dumps({**json.loads(records(proto)[record]), **fields}, sort_keys=True)})


def dims_of(value):
    return value.type.tensor_type.shape.dim


def settle(proto):
    """Puts nodes behind those that they read, where a mutator left them elsewhere."""
    graph = proto.graph
    known = {"", *(t.name for t in graph.initializer), *(v.name for v in graph.input)}
    order, waiting = [], list(graph.node)
    while waiting:
        ready = next((n for n in waiting if reads(n) <= known), None)
        if ready is None:  # something reads what nothing makes: left for the gate to find
            order += waiting
            break
        waiting.remove(ready)
        order.append(ready)
        known |= set(ready.output)
    if [n.output for n in order] != [n.output for n in graph.node]:
        copies = [NodeProto.FromString(n.SerializeToString()) for n in order]
        del graph.node[:]
        graph.node.extend(copies)


def reads(node):
    """What a node reads from its own graph, through its branches too."""
    names = set(node.input)
    for graph in (a.g for a in node.attribute if a.HasField("g")):
        inside = {"", *(t.name for t in graph.initializer), *(v.name for v in graph.input)}
        inside |= {out for n in graph.node for out in n.output}
        names |= {name for n in graph.node for name in n.input if name not in inside and not name.endswith(".weight")}
    return names
