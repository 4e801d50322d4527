"""The report's sections on training and on what routers and experts do, for readers of no paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from omnirouter.analysis import plots, plots_experts, plots_training
from omnirouter.metrics.health import find_spikes
from omnirouter.report import html
from omnirouter.report.model_report import ModelReport


def training(models: Sequence[ModelReport]) -> str:
    """Loss and error rate over the steps."""
    runs = {model.name: model.metrics for model in models}
    loss = plots_training.loss_curves(runs)
    wer = plots_training.curves(runs, key="wer", label="word error rate, %", scale=100.0)
    spikes = {model.name: len(find_spikes(model.metrics)) for model in models}
    counted = ", ".join(f"{escape(name)} {count}" for name, count in spikes.items() if count)
    marked = f" Crosses mark sudden rises of the loss: {counted}." if counted else ""
    return (
        "<h2>Training</h2>\n"
        "<p>First the loss that training lowers, step by step; then word errors on speech held "
        "back for this purpose, measured now and then on the way. Where models are given the same "
        f"audio, a lower curve means more learned from it.{marked}</p>\n"
        f'<div class="figures">{html.figure(loss, "CTC loss in training")}'
        f"{html.figure(wer, 'Word error rate on the development set')}</div>\n"
    )


def strips(models: Sequence[ModelReport]) -> str:
    """Experts under spectrograms, the models' strips of one utterance together."""
    shown = [model for model in models if model.strips and model.routing is not None]
    if not shown:
        return ""
    drawn = []
    for number, examples in enumerate(
        zip(*(model.strips for model in shown), strict=True), start=1
    ):
        strips = {
            model.name: example.experts_LT
            for model, example in zip(shown, examples, strict=True)
            if example.experts_LT is not None
        }
        config = shown[0].config
        figure = plots.expert_strips(
            examples[0].mel_KM,
            strips,
            num_experts=max(model.config.num_experts for model in shown),
            features=config.features,
        )
        drawn.append(html.figure(figure, f"Utterance {number}: “{examples[0].text}”"))
    names = " and ".join(escape(model.name) for model in shown)
    return (
        "<h2>Which expert handles which sound</h2>\n"
        "<p>Above, the spectrogram of an utterance: time runs to the right, pitch goes up, "
        f"bright is loud. Below, for {names}, one row per layer: the color says which expert of "
        "that layer took the moment. Colors are matched between layers as well as they can be. "
        "Columns of one color mean that the layers agree; long runs mean that an expert keeps "
        "to one kind of sound.</p>\n"
        f'<div class="figures">{"".join(drawn)}</div>\n'
    )


def agreement(models: Sequence[ModelReport]) -> str:
    """Whether layers agree, and why they might."""
    numbers = {model.name: model.routing for model in models if model.routing is not None}
    if not numbers:
        return ""
    means = " and ".join(
        f"{routing.cramers_v_mean:.2f} for {escape(name)}" for name, routing in numbers.items()
    )
    lines = plots.cramers_v_lines(
        {model.name: model.routing.cramers_v if model.routing else [] for model in models}
    )
    drawn = [html.figure(lines, "Cramér's V of adjacent layers")]
    for name, routing in numbers.items():
        if routing.pairs:
            last = routing.pairs[-1]
            table = plots.contingency(last.contingency, last.mapping, last.layers)
            drawn.append(
                html.figure(
                    table, f"{name}: experts in layers {last.layers[0]} and {last.layers[1]}"
                )
            )
    for name, routing in numbers.items():
        drawn.append(html.figure(plots.usage(routing.usage), f"{name}: share of each expert"))
    known = {model.name: model.meaning for model in models if model.meaning is not None}
    alike = ""
    if known and all(numbers[name].cramers_v for name in known):
        measured = {name: numbers[name].cramers_v for name in known}
        figure = plots_experts.router_inputs(known, measured)
        drawn.insert(1, html.figure(figure, "Inputs of neighboring routers, and agreement"))
        alike = (
            " Why should layers agree? Above in the second figure: how alike the inputs of two "
            "neighboring routers are (1 is the same direction). Below, dotted: the agreement "
            "there would be if a single one of the model's routers decided in all layers."
        )
    return (
        "<h2>Do layers agree?</h2>\n"
        "<p>Cramér's V says how well the expert chosen in one layer predicts the choice in the "
        f"next: 0 not at all, 1 completely. Here the mean over neighboring layers is {means}. "
        "The squares show the two layers nearest the output: each counts the moments that went "
        "to the row's expert first and the column's next, so a strong diagonal is agreement. "
        "The last figures show how evenly the work is spread: with balanced experts all shares "
        f"are alike.{alike}</p>\n"
        f'<div class="figures">{"".join(drawn)}</div>\n'
    )


def experts(models: Sequence[ModelReport]) -> str:
    """What the experts do, in words that need no paper."""
    known = {model.name: model.meaning for model in models if model.meaning is not None}
    if not known:
        return ""
    lines = []
    for name, own in known.items():
        layer = max(range(len(own.kind_bits)), key=own.kind_bits.__getitem__)
        silence = max(own.experts_of_kind[layer][0])
        runs, chance = own.run_s[layer], own.run_s_by_chance[layer]
        lines.append(
            f"<li><b>{escape(name)}</b>: the experts tell most in layer {layer + 1}, where one of "
            f"them takes {silence:.0%} of all silence. There an expert keeps the floor for "
            f"{1000 * runs:.0f} ms on average; with the same moments in random order it would be "
            f"{1000 * chance:.0f} ms. {own.same_through_depth:.0%} of the moments keep one expert "
            "through all layers.</li>"
        )
    drawn = [
        html.figure(
            plots_experts.kinds_of_sound(own), f"{name}: which expert takes which kind of sound"
        )
        for name, own in known.items()
    ]
    told = plots_experts.told_by_layer(known)
    drawn.append(html.figure(told, "What the chosen expert tells of the sound, by layer"))
    drawn.append(html.figure(plots_experts.run_lengths(known), "How long experts keep the floor"))
    disturbed = {m.name: m.disturbance for m in models if m.disturbance is not None}
    if disturbed:
        caption = "More word errors when experts are drawn at random"
        drawn.append(html.figure(plots_experts.random_experts(disturbed), caption))
    return (
        "<h2>What the experts do</h2>\n"
        "<p>A model of this kind has several experts in each layer, and a router that sends every "
        "moment of sound (a few hundredths of a second) to one of them. Nobody tells the experts "
        "what to do. To see what they took up, each moment is named after the letter spoken "
        "there, found by fitting the known text to the recording, or as silence where it is far "
        "quieter than the rest. Letters are grouped into kinds of sound; English spelling is "
        "loose, so these names are right most of the time only.</p>\n"
        "<p>In the squares, each row is one kind of sound and says how its moments are shared "
        "out among the experts: rows that look alike mean that the experts do not care about that "
        "difference. The curves say the same in one number for each layer: 0 bits if the expert "
        "tells nothing of the sound, more if knowing the expert helps to guess it.</p>\n"
        f"<ul>{''.join(lines)}</ul>\n{_fields(models)}"
        f'<div class="figures">{"".join(drawn)}</div>\n'
    )


def _fields(models: Sequence[ModelReport]) -> str:
    """Dependence on the speaker and the like, as a table."""
    rows = []
    for model in models:
        for name, own in (model.meaning.fields if model.meaning else {}).items():
            bits, chance = (sum(v) / len(v) for v in (own.bits, own.chance))
            rows.append(
                f"<tr><td>{escape(model.name)}: {name}</td><td>{own.values}</td>"
                f"<td>{bits:.3f}</td><td>{chance:.3f}</td></tr>"
            )
    if not rows:
        return ""
    return (
        "<p>Do experts know who speaks, or under which condition? The table has the bits that an "
        "expert tells of it (mean over layers), beside what comes out by chance, when the values "
        "are dealt to the utterances at random. Only what is above chance counts.</p>\n"
        + html.table(["", "values", "bits", "by chance"], rows)
    )


def dynamics(models: Sequence[ModelReport]) -> str:
    """Routing over the steps, and what was wrong on the way."""
    drawn, notes = [], []
    for model in models:
        figure = plots_training.dynamics(model.metrics)
        if figure is not None:
            drawn.append(html.figure(figure, f"{model.name}: routing while it learns"))
        notes += [
            f"<li>{escape(model.name)}, step {row['step']}: {escape(row['text'])}</li>"
            for row in model.metrics
            if row.get("kind") == "diagnosis"
        ]
    if not drawn:
        return ""
    return (
        "<h2>How routing came about</h2>\n"
        "<p>Time runs to the right, layers upwards. Each panel is one figure: the largest share of "
        "the work that one expert has (bright is uneven), the entropy (how undecided the router "
        "is), the gate (how much of an expert's output is let through), and Cramér's V (how well "
        "a layer's choice predicts that of the layer above).</p>\n"
        + (f"<p>Noted on the way:</p><ul>{''.join(notes)}</ul>\n" if notes else "")
        + f'<div class="figures">{"".join(drawn)}</div>\n'
    )
