# The hub, and nothing else: Python, the package and what it needs, run by a user without rights.
#   docker build -t cdchub .
#   docker run --rm -v "$PWD:/data" cdchub status /data/app.db
FROM python:3.13-slim-bookworm AS build
RUN python -m venv /opt/cdchub
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY cdchub ./cdchub
RUN /opt/cdchub/bin/python -m pip install --no-cache-dir --disable-pip-version-check .

FROM python:3.13-slim-bookworm
# The user's number is what usually owns a person's files on a Linux machine, so that a database
# folder mounted from there can be written to; another number: docker run --user.
RUN useradd --uid 1000 --user-group --no-create-home --shell /usr/sbin/nologin cdchub \
    && install --directory --owner=cdchub --group=cdchub /data
COPY --from=build /opt/cdchub /opt/cdchub
ENV PATH=/opt/cdchub/bin:$PATH
USER 1000:1000
WORKDIR /data
# The folder of the database, not the file alone: SQLite's -wal and -shm and the hub's change log
# lie beside it.
VOLUME /data
EXPOSE 8787
# Python asks, because the image has no curl; past any proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('CDCHUB_PORT', '8787') + '/healthz', timeout=3)"]
ENTRYPOINT ["cdchub"]
CMD ["--help"]
