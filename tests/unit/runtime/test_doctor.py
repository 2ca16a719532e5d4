import http.server
import socket
import threading
from pathlib import Path

import pytest

from core.kafka_settings import KafkaSettings
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import find_free_port
from smspulse.runtime.doctor import DoctorFinding, diagnose_machine


def findings(data: Path, kafka: KafkaSettings | None = None, port: int = 0) -> dict[str, DoctorFinding]:
    return {found.name: found for found in diagnose_machine(data, kafka, port or find_free_port())}


def hang_up(server: socket.socket) -> None:
    server.accept()[0].close()


def test_looking_at_a_folder_that_does_not_exist_leaves_it_so(tmp_path: Path) -> None:
    found = findings(tmp_path / "a" / "b")
    assert found["python"].level == "ok"
    assert found["data folder"].level == "ok"
    assert found["broker"] == DoctorFinding("broker", "ok", "none is running here; `smspulse up` starts one")
    assert list(tmp_path.iterdir()) == []


def test_whatever_is_not_well_has_a_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "file").touch()
    port = find_free_port()
    with socket.create_server(("127.0.0.1", port)) as server:
        hanging_up = threading.Thread(target=hang_up, args=(server,))
        hanging_up.start()
        found = findings(tmp_path / "file", KafkaSettings(bootstrap=f"127.0.0.1:{find_free_port()}"), port)
        hanging_up.join()
    levels = {name: each.level for name, each in found.items()}
    assert levels["java"] == levels["kafka"] == "warn"
    assert levels[f"port {port}"] == levels["data folder"] == levels["broker"] == "fail"
    for each in found.values():
        assert (each.fix == "") == (each.level == "ok"), each


def test_a_port_where_ingest_answers_is_well(tmp_path: Path) -> None:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        port = server.server_port
        assert findings(tmp_path, port=port)[f"port {port}"] == DoctorFinding(
            f"port {port}", "ok", "an ingest answers there"
        )
        answering.join()


def test_the_broker_of_the_data_folder_is_found_and_its_topics_looked_at(tmp_path: Path) -> None:
    with MemoryBroker(tmp_path) as broker:
        assert findings(tmp_path)["broker"].level == "warn"
        kafka = KafkaSettings(bootstrap=broker.address, in_memory=True)
        ensure_topics(kafka, timeout_s=10)
        assert findings(tmp_path)["broker"] == DoctorFinding("broker", "ok", f"1 at {broker.address}")
        other = kafka.model_copy(update={"partitions": 3})
        assert findings(tmp_path, other)["broker"].level == "fail"
        alone = findings(tmp_path, kafka)["broker"]
        assert (alone.level, "one replica: sms.raw, " in alone.detail) == ("warn", True)
