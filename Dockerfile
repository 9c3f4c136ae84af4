# qsplit's service on a CPU: docker build -t qsplit . && docker run -e QSPLIT_KEYS=... -p 8080:8080 -v qsplit:/data qsplit
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY qsplit ./qsplit
# That index has the same torch as +cpu, which pip prefers: without CUDA's libraries, most of what the other weighs.
RUN python -m venv /opt/qsplit \
    && /opt/qsplit/bin/pip install --no-cache-dir --constraint constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu '.[serve]'

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --create-home --home-dir /home/qsplit qsplit \
    && install -d -o qsplit -g qsplit /data
COPY --from=build /opt/qsplit /opt/qsplit
ENV PATH=/opt/qsplit/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["qsplit"]
# It ends at once, saying so, unless QSPLIT_KEYS is set: whoever reaches the address could read the album.
CMD ["serve", "--host", "0.0.0.0", "--port", "8080", "--log-json"]
