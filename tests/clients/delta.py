"""delta-rs (object_store): processes append to one table at once, by conditional puts; nothing is lost."""

import multiprocessing

from arro3.core import Array, DataType, Table
from deltalake import CommitProperties, DeltaTable, QueryBuilder, write_deltalake
from s3 import ENDPOINT, client, documented, equal

WRITERS, COMMITS, ROWS = 4, 10, 2_000
TABLE = "s3://delta/a table"


def settings():
    names = {}
    exec(documented("object_store and delta-rs"), names)
    return names["storage_options"]


def text(writer, commit, row):
    return f"{writer}/{commit}/{row}: {row * 7919 % 10007:05}"


def batch(writer, commit):
    column = lambda values, kind: Array(values, type=kind)
    rows = range(ROWS)
    return Table.from_pydict(
        {
            "writer": column([writer] * ROWS, DataType.int64()),
            "commit": column([commit] * ROWS, DataType.int64()),
            "row": column(list(rows), DataType.int64()),
            "text": column([text(writer, commit, row) for row in rows], DataType.utf8()),
        }
    )


def write(writer, start):
    """One process: its commits, each of which may have to be tried again after another's."""
    options = settings()
    start.wait(60)
    for commit in range(COMMITS):
        properties = CommitProperties({"who": f"{writer}-{commit}"}, max_commit_retries=100)
        rows = batch(writer, commit)
        write_deltalake(TABLE, rows, mode="append", storage_options=options, commit_properties=properties)


def read(table, sql):
    answer = QueryBuilder().register("t", table).execute(sql).read_all()
    columns = [answer.column(name).to_pylist() for name in answer.schema.names]
    return [tuple(value for value in row) for row in zip(*columns)]


def look(start, done):
    """A reader meanwhile: of each version it sees whole commits, and never fewer than before."""
    options, before, looks = settings(), 0, 0
    start.wait(60)
    while not done.is_set():
        count = read(DeltaTable(TABLE, storage_options=options), "select count(*) from t")[0][0]
        equal((count % ROWS, count >= before), (0, True), f"rows seen after {before}: {count}")
        before, looks = count, looks + 1
    print(f"{looks} looks", flush=True)


def whole(table, what):
    found = read(table, "select writer, commit, row, text from t order by writer, commit, row")
    expected = [
        (writer, commit, row, text(writer, commit, row))
        for writer in range(WRITERS)
        for commit in range(COMMITS)
        for row in range(ROWS)
    ]
    equal(len(found), len(expected), f"rows {what}")
    equal(found == expected, True, f"the rows are the same {what}")


def main():
    s3, options = client(), settings()
    s3.create_bucket(Bucket="delta")
    write_deltalake(TABLE, batch(0, 0).slice(0, 0), storage_options=options)
    # `spawn`: what has threads must not be forked.
    spawn = multiprocessing.get_context("spawn")
    start, done = spawn.Barrier(WRITERS + 1), spawn.Event()
    writers = [spawn.Process(target=write, args=(writer, start), daemon=True) for writer in range(WRITERS)]
    reader = spawn.Process(target=look, args=(start, done), daemon=True)
    for process in (*writers, reader):
        process.start()
    for process in writers:
        process.join(120)
        equal(process.exitcode, 0, "how a writer ended")
    done.set()
    reader.join(60)
    equal(reader.exitcode, 0, "how the reader ended")

    table = DeltaTable(TABLE, storage_options=options)
    equal(table.version(), WRITERS * COMMITS, "the version")
    history = [entry.get("who") for entry in table.history()][::-1][1:]
    expected = [f"{writer}-{commit}" for writer in range(WRITERS) for commit in range(COMMITS)]
    equal(sorted(history), sorted(expected), "the commits")
    turns = sum(one.split("-")[0] != other.split("-")[0] for one, other in zip(history, history[1:]))
    equal(turns > WRITERS, True, f"they wrote at once: {history}")
    whole(table, "after the writers")

    # Two that began with the same version and change the same rows: the second must be told.
    one, other = (DeltaTable(TABLE, storage_options=options) for _ in range(2))
    one.delete("writer = 0 and commit = 0")
    try:
        other.update({"text": "'lost'"}, predicate="writer = 0 and commit = 0")
    except Exception as error:
        equal(any(word in str(error).lower() for word in ("conflict", "concurrent")), True, f"said: {error}")
    else:
        raise AssertionError("an update of rows that somebody else deleted was taken")

    table = DeltaTable(TABLE, storage_options=options)
    table.restore(WRITERS * COMMITS)
    table.create_checkpoint()
    table.optimize.compact()
    table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    whole(DeltaTable(TABLE, storage_options=options), "after a compaction and a vacuum")
    left = [found["Key"] for found in s3.list_objects_v2(Bucket="delta", Prefix="a table/part-")["Contents"]]
    equal(len(left), 1, f"files that are left: {left}")
    print("done")


if __name__ == "__main__":
    main()
