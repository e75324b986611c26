"""Published checkpoint -> the files that jina_local runs. Never imported by jina_local."""
