# The embedding service alone, on CPUs: no Data, Train, Tune or DeepSpeed. From the repository's root:
#
#   docker build -t pathryoshka-serve -f infra/docker/serve.Dockerfile .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/out/demo/export:/model:ro" pathryoshka-serve
FROM python:3.11-slim-bookworm AS wheels
RUN pip install --no-cache-dir uv==0.13.9 && uv venv /opt/venv
ENV VIRTUAL_ENV=/opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pathryoshka pathryoshka
COPY ray_jobs ray_jobs
# torch for CPUs, from its makers' index (pytorch.org, "Start locally"): a tenth of the size
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN grep -vE '^(torch|torchvision|triton|nvidia-)' constraints.txt > most.txt \
    && uv pip install --no-cache --index "$TORCH_INDEX" --index-strategy unsafe-best-match -c most.txt \
       torch torchvision timm pyarrow boto3 pydantic click pyyaml numpy pillow safetensors "ray[serve]" prometheus-client \
       requests openslide-python openslide-bin tifffile simplejpeg faiss-cpu \
    && uv pip install --no-cache --no-deps .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title=pathryoshka-serve org.opencontainers.image.licenses=Apache-2.0
RUN useradd --uid 1000 --create-home ray
COPY --from=wheels /opt/venv /opt/venv
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
USER ray
WORKDIR /home/ray
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# outside of the container nothing listens but what -p says; the token is printed, or mounted and named with --token-file
CMD ["pathryoshka", "serve", "/model", "--host", "0.0.0.0"]
