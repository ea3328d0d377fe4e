# The embedding service alone, on CPUs, its student in ONNX Runtime: no PyTorch, Data, Train, Tune, DeepSpeed or teachers.
# From the repository's root, with an export that carries its graph (`pathryoshka formats out/demo/export --only onnx`):
#
#   docker build -t pathryoshka-serve -f infra/docker/serve.Dockerfile .
#   docker run --rm --init --shm-size=1g -p 127.0.0.1:8000:8000 -v "$PWD/out/demo/export:/model:ro" pathryoshka-serve
FROM python:3.11-slim-bookworm AS uv
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /src
COPY pyproject.toml constraints.txt ./

FROM uv AS wheels
ENV VIRTUAL_ENV=/opt/venv UV_LINK_MODE=copy
# --build-arg TORCH=1: also for exports without their graph; torch for CPUs from its makers' index (pytorch.org, "Start
# locally") and no other, where it would bring gigabytes of CUDA
ARG TORCH=
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# compiled here: whoever runs it may not write to /opt/venv, and would compile torch anew in every process
ARG UV_COMPILE_BYTECODE=1
# what was downloaded stays with the builder, not in the image: new constraints do not fetch gigabytes again
RUN --mount=type=cache,id=uv,target=/root/.cache/uv \
    uv venv $VIRTUAL_ENV \
    && if [ -n "$TORCH" ]; then \
       uv pip install -c constraints.txt --no-deps --index-url "$TORCH_INDEX" torch torchvision \
       && uv pip install -c constraints.txt torch torchvision timm safetensors; fi \
    && uv pip install -c constraints.txt \
       onnxruntime pyarrow boto3 pydantic click pyyaml numpy pillow "ray[serve]" prometheus-client \
       requests openslide-python openslide-bin tifffile simplejpeg faiss-cpu

FROM uv AS ours
COPY README.md LICENSE ./
COPY pathryoshka pathryoshka
COPY ray_jobs ray_jobs
RUN uv build --no-cache --wheel --build-constraints constraints.txt --out-dir /dist .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title=pathryoshka-serve org.opencontainers.image.licenses=Apache-2.0
RUN useradd --uid 1000 --create-home ray
COPY --from=wheels /opt/venv /opt/venv
RUN --mount=type=bind,from=ours,source=/dist,target=/dist \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-index --no-deps /dist/*.whl
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
USER ray
WORKDIR /home/ray
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# outside of the container nothing listens but what -p says; the token is printed, or mounted and named with --token-file
CMD ["pathryoshka", "serve", "/model", "--host", "0.0.0.0"]
