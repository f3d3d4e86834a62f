import com.google.api.gax.core.NoCredentialsProvider;
import com.google.api.gax.grpc.GrpcCallSettings;
import com.google.api.gax.grpc.GrpcCallableFactory;
import com.google.api.gax.grpc.InstantiatingGrpcChannelProvider;
import com.google.api.gax.grpc.ProtoOperationTransformers.MetadataTransformer;
import com.google.api.gax.grpc.ProtoOperationTransformers.ResponseTransformer;
import com.google.api.gax.longrunning.OperationSnapshot;
import com.google.api.gax.longrunning.OperationTimedPollAlgorithm;
import com.google.api.gax.retrying.RetrySettings;
import com.google.api.gax.rpc.ApiException;
import com.google.api.gax.rpc.ClientContext;
import com.google.api.gax.rpc.OperationCallSettings;
import com.google.api.gax.rpc.OperationCallable;
import com.google.api.gax.rpc.UnaryCallSettings;
import com.google.longrunning.GetOperationRequest;
import com.google.longrunning.Operation;
import com.google.longrunning.OperationsClient;
import com.google.longrunning.OperationsGrpc;
import com.google.longrunning.OperationsSettings;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import com.google.protobuf.util.JsonFormat;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Status;
import java.time.Duration;
import java.util.concurrent.ExecutionException;

/**
 * Calls google.longrunning.Operations through Google's gax for Java: {@code Main ADDRESS wait|cancel NAME}.
 *
 * <p>What came of it is printed as JSON: {"response"}, or {"code", "message", "reason"} of an error.
 */
public class Main {
  private static final Duration PATIENCE = Duration.ofSeconds(60);
  private static final Duration POLL_INTERVAL = Duration.ofMillis(20);

  public static void main(String[] arguments) throws Exception {
    var said = Struct.newBuilder();
    try {
      call(said, arguments[0], arguments[1], arguments[2]);
    } catch (ExecutionException error) {
      if (!(error.getCause() instanceof ApiException failure)) {
        throw error;
      }
      describe(said, failure);
    } catch (ApiException failure) {
      describe(said, failure);
    }
    System.out.println(JsonFormat.printer().omittingInsignificantWhitespace().print(said));
  }

  private static void call(Struct.Builder said, String address, String method, String name)
      throws Exception {
    var settings =
        OperationsSettings.newBuilder()
            .setCredentialsProvider(NoCredentialsProvider.create())
            .setTransportChannelProvider(
                InstantiatingGrpcChannelProvider.newBuilder()
                    .setEndpoint(address)
                    .setChannelConfigurator(ManagedChannelBuilder::usePlaintext)
                    .build())
            .build();
    try (var client = OperationsClient.create(settings)) {
      if (method.equals("cancel")) {
        client.cancelOperation(name);
        return;
      }
      client.getOperation(name);
      System.err.println("waiting"); // whoever started this may now end the operation
      var response = follower(client, settings).resumeFutureCall(name).get();
      said.putFields("response", Value.newBuilder().setStructValue(response).build());
    }
  }

  /** What a client that Google generates has for each of its methods that start operations. */
  private static OperationCallable<GetOperationRequest, Struct, Struct> follower(
      OperationsClient client, OperationsSettings settings) throws Exception {
    var start =
        GrpcCallSettings.<GetOperationRequest, Operation>newBuilder()
            .setMethodDescriptor(OperationsGrpc.getGetOperationMethod())
            .build();
    var polls =
        RetrySettings.newBuilder()
            .setInitialRetryDelayDuration(POLL_INTERVAL)
            .setMaxRetryDelayDuration(POLL_INTERVAL)
            .setTotalTimeoutDuration(PATIENCE)
            .build();
    var call =
        OperationCallSettings.<GetOperationRequest, Struct, Struct>newBuilder()
            .setInitialCallSettings(
                UnaryCallSettings.<GetOperationRequest, OperationSnapshot>newUnaryCallSettingsBuilder()
                    .build())
            .setResponseTransformer(ResponseTransformer.create(Struct.class))
            .setMetadataTransformer(MetadataTransformer.create(Struct.class))
            .setPollingAlgorithm(OperationTimedPollAlgorithm.create(polls))
            .build();
    return GrpcCallableFactory.createOperationCallable(
        start, call, ClientContext.create(settings), client.getStub());
  }

  private static void describe(Struct.Builder said, ApiException failure) {
    var code = Status.Code.valueOf(failure.getStatusCode().getCode().name()).value();
    said.putFields("code", Value.newBuilder().setNumberValue(code).build());
    said.putFields("message", Value.newBuilder().setStringValue(failure.getMessage()).build());
    if (failure.getReason() != null) {
      said.putFields("reason", Value.newBuilder().setStringValue(failure.getReason()).build());
    }
  }
}
