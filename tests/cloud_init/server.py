"""Serves /srv/www, over https too where there is a certificate, and writes down what is posted, a field a line."""
import http.server
import os
import ssl
import threading
import urllib.parse


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        fields = sorted(urllib.parse.parse_qsl(body, keep_blank_values=True))
        # Each guest has keys of its own.
        fields = [(key, value.split()[0] if key.startswith("pub_key") else value) for key, value in fields]
        with open("/srv/posted", "a") as file:
            print(self.path, *(f"{key}={value.strip()}" for key, value in fields), sep="\n", file=file)
        self.send_response(200)
        self.end_headers()


os.chdir("/srv/www")
if os.path.exists("/run/tls/host.pem"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/run/tls/host.pem", "/run/tls/host.key")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
