# Serves the model that is mounted at /model. Not built where it was written: see docs/serving.md.
FROM python:3.11-slim
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
COPY . /plait
RUN pip install --no-cache-dir -c /plait/constraints.txt "/plait[media,serve]" && useradd --create-home plait
USER plait
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"
# --host 0.0.0.0 is the container's own network; what is published is docker run's -p
ENTRYPOINT ["plait", "serve", "/model", "--host", "0.0.0.0"]
