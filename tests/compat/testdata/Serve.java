import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

/** An HttpServer whose page tells the connection's addresses. */
class Serve {
    static String text(InetSocketAddress a) {
        return a.getAddress().getHostAddress().replaceAll("%.*", "") + " " + a.getPort();
    }

    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(args[0])), 128);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            byte[] body = (text(exchange.getRemoteAddress()) + " " + text(exchange.getLocalAddress())).getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
        System.out.println("listening " + text(server.getAddress()));
    }
}
