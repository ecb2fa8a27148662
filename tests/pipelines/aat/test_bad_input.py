"""Bad input ends in one clear error before any training."""

from __future__ import annotations

from pathlib import Path

from tests.projects import Project


def test_all_mistakes_in_the_parameters_are_named_at_once(project: Project) -> None:
    output = project.fail(
        **{
            "aat.search.acceptance_zz": 3,
            "aat.budget.max_relative_drop": 0.1,
            "aat.maximal_rate": 1.5,
            "aat.compression.algorithm": "magnitude_sparcity",
            "digits.split.sed": 1,
        }
    )
    text = " ".join(output.split())
    assert "search.acceptance_zz: unknown key (its value is 3). Did you mean 'acceptance_z'?" in text
    assert "exactly one of max_drop and max_relative_drop is required, but got both" in text
    assert "maximal_rate: should be less than 1, but got 1.5" in text
    assert (
        "must be one of magnitude_sparsity, filter_pruning, quantization, composite, but got 'magnitude_sparcity'"
        in text
    )
    assert "sed: unknown key (its value is 1). Did you mean 'seed'?" in text
    assert "epoch 1/" not in output
    assert not (project.models / "baseline_model").exists()


def test_missing_data_file(project: Project) -> None:
    (project.folder / "data/01_raw/digits.csv").unlink()
    output = project.fail()
    text = " ".join(output.split())
    assert "digits: " in text
    # Without spaces, since a long path is broken where the line ends.
    assert "data/01_raw/digits.csvismissing" in "".join(output.split())


def test_data_file_cut_short(project: Project) -> None:
    path = project.folder / "data/01_raw/digits.csv"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    output = project.fail()
    assert "cut short" in output
    assert "epoch 1/" not in output


def test_scope_that_matches_nothing(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path)
    output = project.fail("--from-nodes", "evaluate_baseline", **{"aat.compression.ignored_scopes": "[blocks.0.conv7]"})
    text = " ".join(output.split())
    assert "ignored_scopes: 'blocks.0.conv7' matches no layer" in text
    assert "rate 0.5" not in output  # no epoch of the loop was run


def test_import_paths_and_arguments_that_lead_nowhere(project: Project) -> None:
    output = project.fail(
        **{
            "digits.baseline.training.optimizer.class_path": "torch.optim.SDG",
            "aat.training.optimizer.init_args.momentun": 0.9,
        }
    )
    text = " ".join(output.split())
    assert "'torch.optim' has no 'SDG'. Did you mean 'SGD'?" in text
    assert "torch.optim.SGD takes no such argument. Did you mean 'momentum'?" in text
    assert "epoch 1/" not in output


def test_openvino_that_is_not_installed_is_told_before_the_run(project: Project) -> None:
    (project.folder / "src/openvino.py").write_text('raise ModuleNotFoundError("No module named openvino")')
    output = project.fail(**{"aat.export.openvino": "true"})
    text = " ".join(output.split())
    assert "aat.export.openvino: OpenVINO cannot be imported (No module named openvino); install it with" in text
    assert "`pip install 'kedro-aat[openvino]'`" in text
    assert not (project.models / "baseline_model").exists()
