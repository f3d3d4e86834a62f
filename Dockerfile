# Any image with Python 3.11 or later and its venv module will do, such as a Debian with python3 and python3-venv.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/opservice
WORKDIR /build
COPY requirements/runtime.txt requirements/
# The secret `ca` is for networks that bring their own certificate authority; it is optional and stays out of the image.
RUN --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    /opt/opservice/bin/pip install --require-hashes --requirement requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY client/pyproject.toml client/README.md client/LICENSE client/
COPY client/src client/src
# What only installs goes, and what only tests, types and other commands use; what runs is compiled here, for a
# read-only file system cannot keep bytecode.
RUN /opt/opservice/bin/pip install --no-index --no-deps --no-build-isolation ./client . \
    && /opt/opservice/bin/pip uninstall --quiet --yes setuptools pip \
    && find /opt/opservice/lib -depth \( -name '*.pyi' -o -name '*.proto' -o -name '*.h' -o -name '*.pxd' \
        -o -path '*/site-packages/*/testing' \) -exec rm -r {} + \
    && find /opt/opservice/bin -mindepth 1 ! -name 'python*' ! -name opservice -delete \
    && /opt/opservice/bin/python -m compileall -q -f --invalidation-mode unchecked-hash /opt/opservice/lib

FROM ${BASE_IMAGE} AS root
# No program gives whoever runs it more rights, and none installs others.
RUN groupadd --gid 10001 opservice \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin opservice \
    && install -d -o opservice -g opservice -m 0750 /data \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && find / -xdev -depth \( -path '*/python3*/ensurepip' -o -path '/usr/share/python-wheels' \
        -o -path '*/bin/pip*' -o -path '*/bin/wheel*' -o -path '*-packages/pip*' -o -path '*-packages/wheel*' \
        -o -path '*-packages/setuptools*' -o -path '*-packages/pkg_resources*' -o -path '*-packages/*distutils*' \) \
        -exec rm -r {} +
COPY --from=build /opt/opservice /opt/opservice

# One layer, because what is removed in a layer stays in those below.
FROM scratch
COPY --from=root / /
ENV PATH=/opt/opservice/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    OPSERVICE_LISTEN=0.0.0.0:50051 \
    OPSERVICE_HTTP_LISTEN=0.0.0.0:50080 \
    OPSERVICE_DATABASE=sqlite:////data/opservice.db
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
# The one place that is written to, temporary files of SQLite included when the rest is read-only.
VOLUME /data
WORKDIR /data
EXPOSE 50051 50080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["opservice", "health"]
ENTRYPOINT ["opservice"]
CMD ["serve"]
# Last, because they change with every build.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="opservice" \
      org.opencontainers.image.description="A durable long-running-operations server over SQLite or PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
