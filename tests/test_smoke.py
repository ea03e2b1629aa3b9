from tests.harness import HubProcess, run_sql


def test_a_commit_of_another_process_reaches_a_subscriber(hub: HubProcess) -> None:
    with hub.stream("table=todos") as stream:
        stream.until("caught-up")
        run_sql(hub.database, "INSERT INTO todos(id, title) VALUES ('a', 'milk')")
        (change,) = stream.changes(1)
    assert change["newValue"] == {"id": "a", "title": "milk", "completed": 0}
