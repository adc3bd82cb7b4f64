# tocsin's server, and `tocsin run` for programs in images built on it:
#
#   docker build -t tocsin .
#   docker run -e TOCSIN_TOKEN=… -e TOCSIN_DATABASE_URL=postgresql://… -p 127.0.0.1:4318:4318 tocsin
#
# Without a database's address everything lies in the volume, in a file of SQLite.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

RUN useradd --system --uid 10001 --home-dir /var/lib/tocsin --create-home --shell /usr/sbin/nologin tocsin \
    && chmod 700 /var/lib/tocsin

WORKDIR /opt/tocsin
COPY pyproject.toml constraints.txt README.md CHANGELOG.md LICENSE ./
COPY tocsin ./tocsin
RUN python -m pip install -c constraints.txt '.[postgres,server]'

# The demo's shop, for compose.yaml: an ordinary service that knows nothing of tocsin.
COPY tocsin/demo/shop.py /srv/shop/shop.py

USER tocsin
ENV HOME=/var/lib/tocsin
WORKDIR /var/lib/tocsin
VOLUME /var/lib/tocsin
EXPOSE 4318

HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:4318/livez', timeout=4)"]

# From other machines it can be reached only with TOCSIN_TOKEN set: without one it says so, and ends.
CMD ["tocsin", "serve", "--host", "0.0.0.0"]
