"""The targets of decode and prefill, held against one run's cells (run.py)."""

FLOOR_ONE_ROW, FLOOR_MANY, INT8_GAIN, PACKAGE = 0.85, 0.6, 1.7, 5
BATCHES = ("B4", "B8", "B16", "B32")
KINDS = ("fp32", "bf16", "int8", "int8a8")
LLAMA_CPP = {"fp32": "F32", "bf16": "BF16", "int8": "Q8_0", "int8a8": "Q8_0"}


def matrix_units(tier, kind):
    return tier == "amx" and kind != "fp32"


def targets(cells, tier):
    """-> [(what, {kind: (value, least)})], a value no smaller than its least where the target is met."""
    def speed(kind, cell, key="tokens_per_second"):
        return cells["Skein " + kind][cell][key]

    def of_floor(kind, cell):
        return speed(kind, cell) / speed(kind, cell, "floor")

    def of_llama(kind, *columns):
        theirs = cells["llama.cpp " + LLAMA_CPP[kind]]
        return min(speed(kind, cell) / theirs[cell]["tokens_per_second"] for cell in columns)

    # The package has no batches: several conversations decode by turns, each at the speed of one.
    package = {cell: max(cells[name][cell]["tokens_per_second"] for name in cells if name.startswith("rwkv package"))
               for cell in ("prefill", "B1")}

    def each(value, least, kinds=KINDS):
        return {kind: (value(kind), least(kind) if callable(least) else least) for kind in kinds}

    found = [
        ("one row, of the floor", each(lambda kind: of_floor(kind, "B1"), FLOOR_ONE_ROW)),
        ("one row, times bf16's", each(lambda kind: speed(kind, "B1") / speed("bf16", "B1"), INT8_GAIN, ("int8", "int8a8"))),
        # Or 0.85 of the floor, where that is less.
        ("one row, times llama.cpp's",
         each(lambda kind: of_llama(kind, "B1"),
              lambda kind: min(1.3, FLOOR_ONE_ROW * of_llama(kind, "B1") / of_floor(kind, "B1")))),
        ("prefill, of the ceiling", each(lambda kind: of_floor(kind, "prefill"), FLOOR_MANY)),
        ("32 rows, of the floor", each(lambda kind: of_floor(kind, "B32"), FLOOR_MANY)),
        ("prefill, times llama.cpp's",
         each(lambda kind: of_llama(kind, "prefill"), lambda kind: 5 if matrix_units(tier, kind) else 1.3)),
        ("16 and 32 rows, times llama.cpp's, the lesser",
         each(lambda kind: of_llama(kind, "B16", "B32"), lambda kind: 3 if matrix_units(tier, kind) else 1.3)),
        ("4 and 8 rows, times llama.cpp's, the lesser", each(lambda kind: of_llama(kind, "B4", "B8"), 1.3)),
        ("prefill, times the rwkv package's best", each(lambda kind: speed(kind, "prefill") / package["prefill"], PACKAGE)),
        ("batches, times the rwkv package's best, the least",
         each(lambda kind: min(speed(kind, cell) for cell in BATCHES[1:]) / package["B1"], PACKAGE)),
    ]
    if tier not in ("plain", "avx2"):
        # Written as what 16 rows give in the time of one: more than 16 / 3.
        found.append(("16 rows, tokens in the time of one row's",
                      each(lambda kind: speed(kind, "B16") / speed(kind, "B1"), 16 / 3)))
    return found


def table(cells, tier):
    """Markdown: what is missed is bold, with what is asked."""
    lines = ["| target | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for what, values in targets(cells, tier):
        shown = []
        for kind in KINDS:
            value, least = values.get(kind, (None, None))
            met = value is not None and value >= least
            shown.append("-" if value is None else f"{value:.2f}" if met else f"**{value:.2f}** of {least:.4g}")
        lines.append(f"| {what} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
