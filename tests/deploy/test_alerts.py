"""The alerts of k8s/options/monitoring fire for what they are there for, and only then."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import inferx.agent.metrics
import inferx.audit.writer
import inferx.health
import inferx.scheduler.metrics  # noqa: F401 - each registers its metrics
from inferx.gateway.metrics import render
from tests.helpers.proxy_kit import Rig

from .kustomize import ROOT, find

CALL = 'function="f",namespace="n",tenant="t"'
WAIT = "inferx_call_wait_seconds_bucket"
ETCD_WAL = "etcd_disk_wal_fsync_duration_seconds_bucket"
# Series and their values each minute, as promtool writes them, of a platform that is well.
WELL = {
    'up{job="gateway"}': "1x60",
    'up{job="nodeagent"}': "1x60",
    'inferx_ready{job="gateway"}': "1x60",
    'inferx_ready{job="scheduler",instance="leads"}': "1x60",
    'inferx_ready{job="scheduler",instance="stands by"}': "0x60",
    f'inferx_calls_total{{{CALL},status="200"}}': "0+100x60",
    f'inferx_calls_total{{{CALL},status="503"}}': "0+1x60",
    f'{WAIT}{{{CALL},le="10"}}': "0+100x60",
    f'{WAIT}{{{CALL},le="30"}}': "0+100x60",
    f'{WAIT}{{{CALL},le="+Inf"}}': "0+100x60",
    'inferx_scheduler_order_seconds_count{kind="start",outcome="failed"}': "0x9 1x50",
    "inferx_gateway_records_lost_total": "0x60",
    'inferx_audit_rows_total{fate="stored"}': "0+100x60",
    "etcd_server_has_leader": "1x60",
    f'{ETCD_WAL}{{le="0.5"}}': "0+100x60",
    f'{ETCD_WAL}{{le="1.0"}}': "0+100x60",
    f'{ETCD_WAL}{{le="+Inf"}}': "0+100x60",
    "etcd_mvcc_db_total_size_in_bytes": "1e9x60",
    "etcd_server_quota_backend_bytes": "4e9x60",
}
# What goes wrong, and the alert that is there for it.
TROUBLE: list[tuple[str, dict[str, str]]] = [
    ("InferxServiceDown", {'up{job="gateway"}': "0x60"}),
    ("InferxNodeAgentDown", {'up{job="nodeagent"}': "0x60"}),
    ("InferxServiceNotReady", {'inferx_ready{job="gateway"}': "0x60"}),
    ("InferxNoLeader", {'inferx_ready{job="scheduler",instance="leads"}': "0x60"}),
    ("InferxCallsFail", {f'inferx_calls_total{{{CALL},status="503"}}': "0+10x60"}),
    ("InferxCallsWaitLong", {f'{WAIT}{{{CALL},le="10"}}': "0+90x60"}),
    (
        "InferxOrdersFail",
        {'inferx_scheduler_order_seconds_count{kind="start",outcome="failed"}': "0x40 1+1x20"},
    ),
    ("InferxRecordsLost", {"inferx_gateway_records_lost_total": "0x55 3x5"}),
    ("InferxAuditRowsLost", {'inferx_audit_rows_total{fate="lost"}': "_x55 50x5"}),
    ("InferxEtcdNoLeader", {"etcd_server_has_leader": "0x60"}),
    ("InferxEtcdDiskSlow", {f'{ETCD_WAL}{{le="0.5"}}': "0+90x60"}),
    ("InferxEtcdAlmostFull", {"etcd_mvcc_db_total_size_in_bytes": "3.5e9x60"}),
]


def firing(tmp_path: Path, cases: list[tuple[list[str], dict[str, str]]]) -> None:
    """Asserts by promtool which alerts fire after an hour: in each case those that are named."""
    promtool = shutil.which("promtool")
    assert promtool, "run scripts/test-deps: promtool is not installed"
    groups = find("options/monitoring", "PrometheusRule", "inferx")["spec"]["groups"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": of[name]} for name in of],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "60m",
                    "exp_samples": [
                        {"labels": f'{{alertname="{name}"}}', "value": 1} for name in names
                    ],
                }
            ],
        }
        for names, of in cases
    ]
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(json.dumps(document))
    command = [promtool, "test", "rules", str(tmp_path / "tests.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    firing(tmp_path, [([], WELL)])


def test_each_alert_fires_for_its_trouble_and_no_other_does(tmp_path: Path) -> None:
    rules = find("options/monitoring", "PrometheusRule", "inferx")["spec"]["groups"]
    named = {rule["alert"] for group in rules for rule in group["rules"]}
    assert named == {name for name, _ in TROUBLE}, "say what the alert is there for"
    firing(tmp_path, [([name], {**WELL, **wrong}) for name, wrong in TROUBLE])


def test_no_scheduler_at_all_is_no_leader(tmp_path: Path) -> None:
    schedulers = [name for name in WELL if 'job="scheduler"' in name]
    left = {name: values for name, values in WELL.items() if name not in schedulers}
    firing(tmp_path, [(["InferxNoLeader"], left)])


@pytest.mark.parametrize("file", ["k8s/options/monitoring/rules.yaml", "docs/workers.md"])
def test_metrics_that_are_named_exist(file: str, tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.function("t/n/f")
    text = render(rig.proxy.stats()).decode()
    exist = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    named = re.findall(r"\binferx_\w+", (ROOT / file).read_text())
    named = [re.sub(r"_(bucket|sum|count)$", "", name) for name in named]
    assert named
    assert set(named) <= exist
