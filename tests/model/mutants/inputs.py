"""Mutants between raw numbers and tokens: statistics, absent rows, days."""

import dataclasses
import json

import numpy as np
from onnx import TensorProto

from model.graph import constants_of
from mutants.bases import mutant
from mutants.tools import (
    add,
    amend,
    constant,
    edit,
    feed,
    maker,
    nodes,
    put,
    records,
    rewrite,
    rounded,
    softmaxes,
    through,
    write,
)


def swapped(a):
    return a[..., [0, 1, 3, 2, *range(4, a.shape[-1])]]


@mutant("v1.0-early", "v2", "v2 fp16", "v2 int8", by=("constants", "tokens"))
def statistics_of_two_bands_swapped(proto, context):
    """A table of constants typed in the order of the bands' names."""
    for name in ("s2_mean", "s2_std"):
        edit(proto, name, swapped)


@mutant("v1.0-early", "v2", seldom=True)
def statistics_of_two_bands_swapped_in_the_profile_too(proto, context):
    """The same slip in the table that both the graph and the profile are made from."""
    for name in ("s2_mean", "s2_std"):
        edit(proto, name, swapped)
        amend(proto, "profile", **{name: swapped(np.asarray(getattr(context.base.profile, name))).tolist()})


def constants_crossed(proto, profile):
    for name, array in constants_of(profile).items():
        put(proto, name, array)


@mutant("v1.1-mpc", "v1.1-aws", "v1.1-mpc GRU", "v1.1-mpc fp16", "v1.1-mpc int8", by=("constants", "tokens"))
def norm_sets_crossed(proto, context):
    """The other source's statistics beside these weights: no error, plausible numbers."""
    constants_crossed(proto, context.other_profile)


@mutant("v1.1-mpc", "v1.1-aws", seldom=True)
def norm_sets_crossed_under_the_own_name(proto, context):
    """The other source's statistics in the graph and in a profile that still names this one."""
    constants_crossed(proto, context.other_profile)
    there = dataclasses.asdict(context.other_profile)
    amend(proto, "profile", **{k: v for k, v in there.items() if "mean" in k or "std" in k})


@mutant("v1.1-mpc", "v1.1-aws", by=("golden outputs",))
def imported_under_the_other_source(proto, context):
    """A checkpoint of one source imported as the other's: graph, profile and names agree, the weights do not."""
    constants_crossed(proto, context.other_profile)
    profile = context.other_profile
    origin = {**json.loads(records(proto)["origin"]), "family": profile.family}
    name = records(proto)["name"].replace(context.base.family, profile.family)
    write(proto, profile=profile.to_json(), origin=json.dumps(origin, sort_keys=True), name=name)


@mutant("v1.1-mpc", "v1.1-aws", "v2", "v2 fp16", "v2 int8", by=("constants", "tokens"))
def orbits_crossed(proto, context):
    """Ascending passes standardised by the statistics of descending ones."""
    for name in ("s1_mean", "s1_std"):
        edit(proto, name, lambda a: a[::-1])


@mutant("v2", seldom=True)
def orbits_crossed_in_the_profile_too(proto, context):
    """The two orbits crossed in the table that both the graph and the profile are made from."""
    orbits_crossed(proto, context)
    there = context.base.profile
    crossed = {f"s1_{a}_{s}": getattr(there, f"s1_{b}_{s}") for a, b in (ORBITS, ORBITS[::-1]) for s in ("mean", "std")}
    amend(proto, "profile", **crossed)


ORBITS = ("ascending", "descending")


@mutant("v1.1-mpc", "v2", "v2 fp16", "v2 int8", by=("tokens",))
def orbit_ignored(proto, context):
    """A caller's habit from v1.0 baked in: every pass is taken for an ascending one."""
    index = nodes(proto, "Gather", "s1_mean")[0].input[1]
    through(proto, index, "Mul", constant(proto, 0, np.int64))


@mutant("v2", "v1.1-aws", seldom=True)
def one_set_for_both_orbits(proto, context):
    """The teacher's pooled radar statistics in a student."""
    for name in ("s1_mean", "s1_std"):
        edit(proto, name, lambda a: np.broadcast_to(a.mean(0), a.shape))


@mutant("v2", seldom=True)
def variances_for_deviations(proto, context):
    """A library that keeps variances where this one wants deviations."""
    edit(proto, "s2_std", np.square)


@mutant("v1.0-qat", "v2", seldom=True)
def means_rounded_to_integers(proto, context):
    """Constants copied from a page that prints them short."""
    edit(proto, "s2_mean", np.rint)


@mutant("v2", "v1.0-early")
def another_epsilon_of_the_deviation(proto, context):
    """A division guarded with 1e-3 where the reference has 1e-9: next to nothing at deviations of 1,000."""
    put(proto, "std_epsilon", np.float32(1e-3))


def raw(proto, modality):
    """The cast of a sensor's numbers to float32."""
    return nodes(proto, "Cast", nodes(proto, "Reshape", modality)[0].output[0])[0]


@mutant("v1.1-mpc", "v2", by=("tokens", "extremes"))
def numbers_read_as_int16(proto, context):
    """A stack that keeps reflectance as int16: bright clouds turn negative."""
    feed(proto, raw(proto, "s2"), 0, "Cast", to=TensorProto.INT16)


@mutant("v1.0-qat", "v2", "v2 int8", by=("tokens", "rare pixels"))
def reflectance_clipped_at_one(proto, context):
    """A guard against reflectance above 1: snow and clouds lose what lies beyond 10,000."""
    through(proto, raw(proto, "s2").output[0], "Clip", "", constant(proto, 10_000))


@mutant("v1.1-mpc", seldom=True)
def radar_clipped_at_ten_thousand(proto, context):
    """The bound of one sensor's numbers laid on the other's: bright towns look alike."""
    through(proto, raw(proto, "s1").output[0], "Clip", "", constant(proto, 10_000))


@mutant("v2", "v2 fp16", "v1.1-mpc fp16")
def numbers_in_float16(proto, context):
    """A converter that makes raw numbers half precision too: steps of 4 above 4,096, infinity above 65,504."""
    rounded(proto, raw(proto, "s2").output[0], TensorProto.FLOAT16)


@mutant("v1.1-mpc", "v2", "v2 fp16", "v2 int8", by=("absent rows",))
def absent_rows_used(proto, context):
    """The rule for day 0 lost: whatever numbers fill an absent row reach the encoder."""
    for node in nodes(proto, "Where"):
        rewrite(node, "Identity", node.input[2])


@mutant("v1.1-mpc", "v2")
def absent_rows_are_raw_zeros(proto, context):
    """Absent rows filled with zeros before standardisation, where the reference has zeros after it."""
    for node in nodes(proto, "Where"):
        absent, zero, x = node.input
        sub = maker(proto, maker(proto, x).input[0])
        sub.input[0] = add(proto, "Where", absent, zero, sub.input[0])
        rewrite(node, "Identity", x)


@mutant("v1.1-mpc", "v2", "v1.0-early")
def absent_rows_masked_in_the_pools(proto, context):
    """Somebody mends what looks like a bug: padding gets no share in the pool. The weights were not trained so."""
    for node, modality in zip(softmaxes(proto, context.sizes)[1], ("s2", "s1"), strict=True):
        hide(proto, node, f"{modality}_doy", 1)


@mutant("v2", "v2 fp16", seldom=True)
def absent_rows_masked_in_attention(proto, context):
    """Padding hidden from attention, as every text book has it and no TESSERA encoder does."""
    for node in softmaxes(proto, context.sizes)[0]:
        modality = "s2" if "s2" in "".join(records_of_layer(proto, node)) else "s1"
        hide(proto, node, f"{modality}_doy", 2)


def records_of_layer(proto, softmax):
    """Names of the weights of the query that a softmax of attention goes back to."""
    name = softmax.input[0]
    while True:
        node = maker(proto, name)
        if node.op_type == "Gemm":
            return [n for n in node.input if n.endswith(".weight")]
        name = node.input[0]


def hide(proto, softmax, doy, ranks):
    """Takes a great number off the scores (N, .., T) of day 0, unless all of a pixel's rows are absent."""
    absent = add(proto, "Equal", doy, constant(proto, 0, np.int16))
    known = add(proto, "Not", absent)
    some = add(proto, "ReduceMax", add(proto, "Cast", known, to=TensorProto.FLOAT), constant(proto, [1], np.int64))
    cost = add(proto, "Mul", add(proto, "Cast", absent, to=TensorProto.FLOAT), constant(proto, -1e9))
    cost = add(proto, "Mul", cost, some)
    cost = add(proto, "Unsqueeze", cost, constant(proto, list(range(1, ranks + 1)), np.int64))
    feed(proto, softmax, 0, "Add", cost)


def table(width, base=10_000.0, days=None):
    """(sines, cosines) of each day, float32 (367, width / 2)."""
    angle = (np.arange(367) if days is None else days)[:, None] * base ** (-np.arange(0, width, 2) / width)
    return np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)


def woven(a, b):
    return np.stack([a, b], -1).reshape(len(a), -1)


def day_indices(proto):
    return [n.input[1] for n in nodes(proto, "Gather", "day_table")]


@mutant("v1.0-early", "v2", "v2 int8", by=("day table", "days"))
def day_table_one_day_late(proto, context):
    """A table that begins at 1 for days that begin at 1."""
    edit(proto, "day_table", lambda a: np.roll(a, 1, 0))


@mutant("v1.1-mpc", "v2", "v2 fp16")
def days_counted_from_one_twice(proto, context):
    """Days made of dates by one tool, counted from one again in the graph."""
    for index in day_indices(proto):
        late = add(proto, "Add", index, constant(proto, 1, np.int64))
        late = add(proto, "Min", late, constant(proto, 366, np.int64))
        for node in nodes(proto, "Gather", index):
            node.input[1] = late


@mutant("v2", "v1.1-mpc")
def day_table_of_another_base(proto, context):
    """Sinusoids of base 1,000, as some time-series encoders have them."""
    put(proto, "day_table", woven(*table(context.sizes.width, 1_000.0)))


@mutant("v2", "v1.0-qat")
def sines_and_cosines_swapped(proto, context):
    """Cosines on the even places."""
    put(proto, "day_table", woven(*reversed(table(context.sizes.width))))


@mutant("v2", seldom=True)
def sines_before_cosines(proto, context):
    """All sines, then all cosines, as another well-known library lays them out."""
    put(proto, "day_table", np.concatenate(table(context.sizes.width), 1))


@mutant("v1.1-mpc", seldom=True)
def days_as_parts_of_a_year(proto, context):
    """The day as an angle of the year, where the weights know the raw day."""
    put(proto, "day_table", woven(*table(context.sizes.width, days=np.arange(367) * 2 * np.pi / 365.25)))


@mutant("v1.0-qat", "v2")
def day_table_in_float16(proto, context):
    """A table kept in half precision to save a few kilobytes."""
    edit(proto, "day_table", lambda a: a.astype(np.float16))


@mutant("v1.0-qat", "v2", "v2 int8", by=("days",))
def no_leap_years(proto, context):
    """The last day of a leap year taken for the day before."""
    for index in day_indices(proto):
        through(proto, index, "Min", constant(proto, 365, np.int64))


@mutant("v1.1-aws", "v2", by=("days",))
def days_kept_in_a_byte(proto, context):
    """Days as uint8: autumn becomes January."""
    for index in day_indices(proto):
        node = maker(proto, index)
        feed(proto, node, 0, "Cast", to=TensorProto.UINT8)


@mutant("v2", "v1.1-mpc", by=("order of pixels",))
def one_calendar_for_all_pixels(proto, context):
    """The first pixel's days used for its whole batch, as where a stack has one list of dates."""
    first = [constant(proto, [v], np.int64) for v in (0, 1, 0)]
    days = add(proto, "Expand", add(proto, "Slice", "s2_doy", *first), add(proto, "Shape", "s2_doy"))
    nodes(proto, "Reshape", "s2_doy")[0].input[0] = days


@mutant("v2", by=("day table",))
def no_day_zero(proto, context):
    """Absent rows without a day's encoding: the reference adds that of day 0, whose cosines are ones."""
    edit(proto, "day_table", lambda a: np.concatenate([np.zeros_like(a[:1]), a[1:]]))


@mutant("v1.1-aws", "v2", by=("day table",))
def one_day_of_the_table_damaged(proto, context):
    """A row of the table that no test happens to ask for."""

    def change(numbers):
        numbers[200, -2:] = numbers[201, -2:] + np.float32(1e-3)
        return numbers

    edit(proto, "day_table", change)
