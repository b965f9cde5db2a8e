# An http.server whose page tells the connection's addresses.
import http.server
import socket
import sys


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    address_family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET

    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        here = self.connection.getsockname()
        body = f"{self.client_address[0]} {self.client_address[1]} {here[0]} {here[1]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = Server((sys.argv[2], int(sys.argv[1])), Handler)
print("listening", *server.socket.getsockname()[:2], flush=True)
server.serve_forever()
